"""Training speed of language models side by side: one whole step (forward, backward, AdamW) in one precision."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hgrn2.bench.attempt import attempt, peak_bytes, reset_peak, synchronize, usable
from hgrn2.bench.baselines import mamba_layers
from hgrn2.bench.bench_model import BenchModel, Setup
from hgrn2.bench.models import build, check_available
from hgrn2.bench.settings import TrainBench
from hgrn2.bench.timing import Sample, interleave, prepare_process
from hgrn2.errors import UserError
from hgrn2.gpu import matrix_rate
from hgrn2.models.config import Recompute
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement

LEARNING_RATE = 1e-4  # small: speed does not depend on it, and pure bfloat16 on random tokens must stay finite
QUEUED = 3
"""Steps that a GPU is given at once: like a real run, which waits for it only to show the loss."""


@dataclass(frozen=True)
class _Candidate:
    """A model made ready: its step, and what the row says about it."""

    measured: BenchModel
    step: Sample
    details: dict[str, Any]


@dataclass(kw_only=True)
class _Run:
    """One call of `measure`: what was asked for, where rows and progress go, what holds for every row."""

    bench: TrainBench
    record: Callable[[Row], None]
    progress: Progress
    rate: float
    """Of a large matrix product, operations per second."""
    conditions: dict[str, Any] = field(default_factory=dict)

    def row(self, name: str, length: int, recompute: Recompute, candidate: _Candidate, seconds: list[float]) -> None:
        """Hand a row to `record`."""
        bench, measured = self.bench, candidate.measured
        case = {**asdict(bench.measured_size), "dtype": bench.measured_dtype, "batch": bench.tokens // length}
        case |= {"tokens": length, "compile": False if bench.compile == "none" else bench.compile}
        case |= {} if recompute == "none" else {"recompute": recompute}
        speeds = [bench.tokens / each for each in seconds]
        made = measurement("train", case, name, measured.backend, speeds, "tokens/s", candidate.details)
        if measured.flops is not None:
            made.details["mfu"] = round(measured.flops(length) * made.median / self.rate, 4)
            made.details["matmul_tflop_s"] = round(self.rate / 1e12, 2)
        made.details.update(self.conditions)
        self.record(made)


def measure(bench: TrainBench, record: Callable[[Row], None], progress: Progress = silent) -> list[str]:
    """Measure every model at every length.

    On a CPU all models of a length take turns, and its rows go to `record` when its repeats are done. On a GPU each
    model has the memory to itself, its row goes to `record` at once, and one that fails leaves the others alone.

    Returns:
        A line for each model that failed on a GPU.
    """
    device = usable(bench.device)
    check_available(bench.measured)
    conditions = {**prepare_process(bench.limits), "optimizer": "AdamW, fused" if bench.device == "cuda" else "AdamW"}
    progress("largest rate of a matrix product", 0, 1)
    rate = matrix_rate(device, getattr(torch, bench.measured_dtype))
    run = _Run(bench=bench, record=record, progress=progress, rate=rate, conditions=conditions)
    return _one_by_one(run) if bench.device == "cuda" else _in_turn(run)


def _in_turn(run: _Run) -> list[str]:
    bench = run.bench
    for length in bench.lengths:
        for recompute in bench.recompute:
            stage, ready = _stage(length, recompute), {}
            for name in _measurable(bench, recompute):
                run.progress(f"{stage}: making {name}", 0, 1)
                ready[name] = made_ready(bench, name, length, recompute)
            steps = {name: candidate.step for name, candidate in ready.items()}
            taken = interleave(steps, bench.limits, stage, run.progress)
            for name, candidate in ready.items():
                run.row(name, length, recompute, candidate, taken[name])
    return []


def _one_by_one(run: _Run) -> list[str]:
    bench, failures = run.bench, []
    run.conditions["interleaved"] = False
    for length in bench.lengths:
        torch.compiler.reset()  # another length is another shape: what was compiled before only fills its cache
        for recompute in bench.recompute:
            for name in _measurable(bench, recompute):
                with attempt(bench.model_seconds) as outcome:
                    _alone(run, name, length, recompute)
                if outcome.why:
                    failures.append(f"{name}, {_stage(length, recompute)}: {outcome.why}")
                    run.progress(failures[-1], 1, 1)
    return failures


def _alone(run: _Run, name: str, length: int, recompute: Recompute) -> None:
    """Make a model, take its first step, which compiles and tunes, then time it and record its row."""
    stage = f"{_stage(length, recompute)}: {name}"
    run.progress(f"{stage}, first step", 0, 1)
    began = time.perf_counter()
    candidate = made_ready(run.bench, name, length, recompute)
    candidate.step()
    details = {**candidate.details, "first_steps_s": round(time.perf_counter() - began, 1)}
    device = torch.device(run.bench.device)
    reset_peak(device)
    seconds = interleave({name: candidate.step}, run.bench.limits, stage, run.progress)[name]
    details |= peak_bytes(device)
    run.row(name, length, recompute, _Candidate(candidate.measured, candidate.step, details), seconds)


def _measurable(bench: TrainBench, recompute: Recompute) -> Iterator[str]:
    """The models that can be measured: only hgrn2 can recompute its GLUs alone."""
    return (name for name in bench.measured if recompute != "glu" or name == "hgrn2")


def _stage(length: int, recompute: Recompute) -> str:
    return f"T {length}" if recompute == "none" else f"T {length}, recompute {recompute}"


def made_ready(bench: TrainBench, name: str, length: int, recompute: Recompute = "none") -> _Candidate:
    """A model and its step, at its full depth; Mamba by its first two layers where the whole would take too long."""
    setup = Setup(
        device=torch.device(bench.device),
        dtype=getattr(torch, bench.measured_dtype),
        compile=bench.compile,
        recompute=recompute,
        loss=bench.loss,
    )
    measured = build(name, bench.measured_size, bench.seed, setup=setup)
    details: dict[str, Any] = {"parameters": measured.parameters}
    if name == "mamba-hf" and (layers := mamba_layers(bench.measured_size)) > 2:
        one, two = (
            _step(bench, build(name, bench.measured_size, bench.seed, layers=n, setup=setup), length) for n in (1, 2)
        )
        # Compiling takes longer than any step: minutes for the two, and it grows with depth.
        if bench.compile != "none" or one() * layers > bench.limits.max_seconds:
            details["estimated_from"] = f"1 and 2 of its {layers} layers"
            return _Candidate(measured, _by_depth(one, two, layers), details)
    return _Candidate(measured, _step(bench, measured, length), details)


def _by_depth(one: Sample, two: Sample, layers: int) -> Sample:
    """The step of a model too slow to be run: that of one layer, and for each further one what the second one adds.

    The library's Mamba differentiates a Python loop over views of whole tensors, which costs B T² a layer.
    """

    def sample() -> float:
        first = one()
        return first + (layers - 1) * max(0.0, two() - first)

    return sample


def _step(bench: TrainBench, measured: BenchModel, length: int) -> Sample:
    """A training step on random tokens, the same for every model; on a GPU the mean of some in a row."""
    device = torch.device(bench.device)
    generator = torch.Generator().manual_seed(bench.seed)
    shape = (bench.tokens // length, length + 1)
    text = torch.randint(bench.measured_size.vocab_size, shape, generator=generator).to(device)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    measured.model.train()
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(measured.model.parameters(), lr=LEARNING_RATE, fused=on_gpu or None)

    def one() -> torch.Tensor:
        loss = measured.loss(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def sample() -> float:
        number = QUEUED if on_gpu else 1
        synchronize(device)
        began = time.perf_counter()
        loss = one()
        for _ in range(number - 1):
            loss = one()
        synchronize(device)
        seconds = (time.perf_counter() - began) / number
        if not math.isfinite(loss.item()):
            raise UserError(f"{measured.name} diverged: its loss is {loss.item()}, and its speed would mean nothing")
        return seconds

    if bench.compile != "none" and not on_gpu:
        sample()  # compiles; no part of any measurement
    return sample
