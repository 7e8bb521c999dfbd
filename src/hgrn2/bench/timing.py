"""Repeated timing of several subjects in turn, so that a drift of the machine meets all of them alike."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from hgrn2 import cpu
from hgrn2.bench.settings import Limits

Name = TypeVar("Name", bound=object)
Sample = Callable[[], float]
"""Does the work once and returns the seconds that count."""
Progress = Callable[[str, int, int], None]
"""Told (what is going on, rounds done, rounds in all)."""


def silent(stage: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


def prepare_process(limits: Limits) -> dict[str, Any]:
    """Set up this process for everything that will be measured in it, and say how, for the rows."""
    if limits.threads is not None:
        torch.set_num_threads(limits.threads)  # the native kernels share PyTorch's thread pool
    return {"freed_memory_kept": cpu.keep_freed_memory(), "interleaved": True}


def interleave(
    samples: Mapping[Name, Sample], limits: Limits, stage: str = "", progress: Progress = silent
) -> dict[Name, list[float]]:
    """Take samples of every subject, one of each a round, after one round that does not count.

    The subject that begins moves on by one every round, so that none always follows the same other one. A subject
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
