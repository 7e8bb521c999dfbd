"""Training speed of language models side by side: one whole step (forward, backward, AdamW) in float32."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.bench.baselines import mamba_layers
from hgrn2.bench.record import Row, measurement
from hgrn2.bench.settings import TrainBench
from hgrn2.bench.subjects import Subject, build
from hgrn2.bench.timing import Progress, Sample, interleave, prepare_process, silent
from hgrn2.errors import UserError

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class _Candidate:
    """A subject made ready: its step, and what the row says about it."""

    backend: str
    step: Sample
    details: dict[str, Any]


def measure(bench: TrainBench, record: Callable[[Row], None], progress: Progress = silent) -> None:
    """Measure every subject at every length; each length's rows go to `record` when its repeats are done."""
    conditions = {**prepare_process(bench.limits), "optimizer": "AdamW"}
    for length in bench.lengths:
        stage, ready = f"T {length}", {}
        for name in bench.subjects:
            progress(f"{stage}: making {name}", 0, 1)
            ready[name] = _ready(bench, name, length)
        steps = {name: candidate.step for name, candidate in ready.items()}
        taken = interleave(steps, bench.limits, stage, progress)
        case = {**asdict(bench.size), "dtype": "float32", "batch": bench.tokens // length, "tokens": length}
        case |= {"compile": bench.compile}
        for name, candidate in ready.items():
            speeds = [bench.tokens / seconds for seconds in taken[name]]
            details = {**candidate.details, **conditions}
            record(measurement("train", case, name, candidate.backend, speeds, "tokens/s", details))


def _ready(bench: TrainBench, name: str, length: int) -> _Candidate:
    """A subject at its full depth; Mamba by its first two layers where the whole would take too long."""
    subject = build(name, bench.size, bench.seed)
    details: dict[str, Any] = {"parameters": subject.parameters}
    if name == "mamba-hf" and (layers := mamba_layers(bench.size)) > 2:
        one, two = (_step(bench, build(name, bench.size, bench.seed, layers=n), length) for n in (1, 2))
        # Compiling takes longer than any step: minutes for the two, and it grows with depth.
        if bench.compile or one() * layers > bench.limits.max_seconds:
            details["estimated_from"] = f"1 and 2 of its {layers} layers"
            return _Candidate(subject.backend, _by_depth(one, two, layers), details)
    return _Candidate(subject.backend, _step(bench, subject, length), details)


def _by_depth(one: Sample, two: Sample, layers: int) -> Sample:
    """The step of a model too slow to be run: that of one layer, and for each further one what the second one adds.

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

    if bench.compile:
        sample()  # compiles; no part of any measurement
    return sample
