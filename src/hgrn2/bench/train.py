"""Training speed of language models side by side: one whole step (forward, backward, AdamW) in float32."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2 import cpu
from hgrn2.bench.baselines import mamba_layers
from hgrn2.bench.record import Row, measurement
from hgrn2.bench.size import Size
from hgrn2.bench.subjects import Subject, build, check_distinct, use_threads
from hgrn2.bench.timing import Progress, Sample, interleave, silent
from hgrn2.errors import UserError
from hgrn2.settings import refuse

LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """What to measure."""

    size: Size = field(default_factory=Size)
    subjects: tuple[str, ...] = ("hgrn2", "llama-hf", "mamba-hf")
    lengths: tuple[int, ...] = (512, 2048)
    """Tokens of a sequence, T."""
    tokens: int = 4096
    """Of a step, B·T, at every length."""
    repeats: int = 5
    max_seconds: float = 60.0
    """Of wall time for a subject at a length, after which it is not repeated again."""
    compile: bool = False
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_distinct("--subjects", self.subjects)
        check_distinct("--lengths", self.lengths)
        for length in self.lengths:
            refuse(length < 1, f"--lengths has {length}; it must be at least 1")
            refuse(
                self.tokens < 1 or self.tokens % length != 0,
                f"--tokens is {self.tokens}; it must be a multiple of the length {length}",
            )
        refuse(self.repeats < 1, f"--repeats is {self.repeats}; it must be at least 1")
        refuse(not 0 < self.max_seconds < math.inf, f"--max-seconds is {self.max_seconds}; it must be positive")


@dataclass(frozen=True)
class _Candidate:
    """A subject made ready: its step, and what the row says about it."""

    backend: str
    step: Sample
    details: dict[str, Any]


def measure(bench: TrainBench, record: Callable[[Row], None], progress: Progress = silent) -> None:
    """Measure every subject at every length; each length's rows go to `record` when its repeats are done."""
    use_threads(bench.threads)
    conditions = {
        "freed_memory_kept": cpu.keep_freed_memory(),  # of the whole process, so for every subject alike
        "interleaved": True,
        "optimizer": "AdamW",
    }
    for length in bench.lengths:
        stage, ready = f"T {length}", {}
        for name in bench.subjects:
            progress(f"{stage}: making {name}", 0, 1)
            ready[name] = _ready(bench, name, length)
        steps = {name: candidate.step for name, candidate in ready.items()}
        limits = {"repeats": bench.repeats, "max_seconds": bench.max_seconds}
        taken = interleave(steps, **limits, stage=stage, progress=progress)
        case = {**asdict(bench.size), "dtype": "float32", "batch": bench.tokens // length, "tokens": length}
        case |= {"compile": bench.compile}
        for name, candidate in ready.items():
            speeds = [bench.tokens / seconds for seconds in taken[name]]
            details = {**candidate.details, **conditions}
            record(measurement("train", case, name, candidate.backend, speeds, "tokens/s", details))


def _ready(bench: TrainBench, name: str, length: int) -> _Candidate:
    subject = build(name, bench.size, bench.seed)
    details: dict[str, Any] = {"parameters": subject.parameters}
    if name == "mamba-hf":
        layers = mamba_layers(bench.size)
        shallow = _step(bench, build(name, bench.size, bench.seed, layers=1), length)
        if layers > 2 and shallow() * layers > bench.max_seconds:
            deeper = _step(bench, build(name, bench.size, bench.seed, layers=2), length)
            details["estimated_from"] = f"1 and 2 of its {layers} layers"
            return _Candidate(subject.backend, _by_depth(shallow, deeper, layers), details)
    return _Candidate(subject.backend, _step(bench, subject, length), details)


def _by_depth(one: Sample, two: Sample, layers: int) -> Sample:
    """The step of a model too slow to be run: that of one layer, and as often as needed what the second one adds.

    The library's Mamba differentiates a Python loop over views of whole tensors, which costs B T² a layer.
    """

    def sample() -> float:
        first = one()
        return first + (layers - 1) * max(0.0, two() - first)

    return sample


def _step(bench: TrainBench, subject: Subject, length: int) -> Sample:
    """A training step on random tokens, the same for every subject."""
    generator = torch.Generator().manual_seed(bench.seed)
    shape = (bench.tokens // length, length + 1)
    text = torch.randint(bench.size.vocab_size, shape, generator=generator)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].flatten()
    subject.model.train()
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=LEARNING_RATE)

    def loss_of(tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(subject.logits(tokens).flatten(0, 1).float(), targets)

    loss_fn = torch.compile(loss_of, dynamic=False) if bench.compile else loss_of

    def sample() -> float:
        began = time.perf_counter()
        loss = loss_fn(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        if not math.isfinite(loss.item()):
            raise UserError(f"{subject.name} diverged: its loss is {loss.item()}, and its speed would mean nothing")
        return seconds

    return sample
