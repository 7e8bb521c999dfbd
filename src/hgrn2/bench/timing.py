"""Repeated timing of several calls in turn, so that a drift of the machine meets all of them alike."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from hgrn2 import cpu
from hgrn2.bench.settings import Limits
from hgrn2.progress import Progress, silent

Name = TypeVar("Name", bound=object)
Sample = Callable[[], float]
"""Does the work once and returns the seconds that count."""

_JUNK_BYTES = 256 << 20  # several times the L2 of any GPU today
_JUNK_SECONDS = 5e-5  # in which even the quickest GPU of today cannot quite overwrite it
_MOST_LEAD = 40  # times that it is overwritten before a call


def prepare_process(limits: Limits) -> dict[str, Any]:
    """Set up this process for everything that will be measured in it, and say how, for the rows."""
    if limits.threads is not None:
        torch.set_num_threads(limits.threads)  # the native kernels share PyTorch's thread pool
    return {"freed_memory_kept": cpu.keep_freed_memory(), "interleaved": True}


def interleave(
    samples: Mapping[Name, Sample], limits: Limits, stage: str = "", progress: Progress = silent
) -> dict[Name, list[float]]:
    """Take samples of every call, one of each per round, after one round that does not count.

    The call that begins moves on by one every round, so that none always follows the same other one. A call
    whose samples have used up `limits.max_seconds` of wall time takes no further ones; it has at least one. Where its
    part of the round that does not count takes longer than that by itself, it is the one.
    """
    repeats, max_seconds = limits.repeats, limits.max_seconds
    taken: dict[Name, list[float]] = {name: [] for name in samples}
    used = dict.fromkeys(samples, 0.0)
    names = list(samples)
    for turn in range(repeats + 1):
        progress(stage, turn, repeats + 1)
        for name in _rotated(names, turn):
            if taken[name] and used[name] >= max_seconds:
                continue
            began = time.perf_counter()
            seconds = samples[name]()
            wall = time.perf_counter() - began
            if turn or wall >= max_seconds:
                taken[name].append(seconds)
                used[name] += wall
    progress(stage, repeats + 1, repeats + 1)
    return taken


def _rotated(names: Sequence[Name], turn: int) -> list[Name]:
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def repeated(call: Callable[[], object], at_least: float = 0.005) -> Sample:
    """A sample that runs a quick call often enough to last `at_least` seconds, and returns the mean."""
    number = 0

    def sample() -> float:
        nonlocal number
        if number == 0:
            call()  # the first call pays for memory and caches
            began = time.perf_counter()
            call()
            number = max(1, math.ceil(at_least / max(time.perf_counter() - began, 1e-9)))
        began = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - began) / number

    return sample


class Events:
    """A sample in GPU time: events around each of several calls, L2 overwritten before every one; their median.

    Memory is overwritten so often before a call that the GPU is busy until the processor has queued all of the call:
    what is timed is the work of the GPU, not the time in which Python starts it. That time is kept in `host`.
    """

    def __init__(self, call: Callable[[], object], at_least: float = 0.01, at_most: int = 10) -> None:
        self.call, self.at_least, self.at_most = call, at_least, at_most
        self.number, self.lead = 0, _MOST_LEAD
        self.host: list[float] = []
        """Seconds in which the processor started each call."""

    def __call__(self) -> float:
        if self.number == 0:
            self._run(1)  # the first call pays for kernels and memory
            self.host.clear()
            self.number = min(self.at_most, max(1, math.ceil(self.at_least / max(self._run(1), 1e-9))))
            self.lead = min(_MOST_LEAD, 1 + math.ceil(self.host_median / _JUNK_SECONDS))
        return self._run(self.number)

    @property
    def host_median(self) -> float:
        """Seconds in which the processor starts a call."""
        return statistics.median(self.host)

    def _run(self, number: int) -> float:
        junk = _junk(torch.cuda.current_device())
        pairs = []
        for _ in range(number):
            for _ in range(self.lead):
                junk.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            began = time.perf_counter()
            self.call()
            self.host.append(time.perf_counter() - began)
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


@functools.cache
def _junk(device: int) -> torch.Tensor:
    return torch.empty(_JUNK_BYTES, dtype=torch.int8, device=f"cuda:{device}")


def sample_of(call: Callable[[], object], device: str) -> Sample:
    """The way to time a call on this device."""
    return Events(call) if device == "cuda" else repeated(call)
