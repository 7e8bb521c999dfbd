"""Decoding speed of language models side by side: one token at a time after a prompt, greedy, in one precision."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrn2.bench.attempt import attempt, peak_bytes, reset_peak, synchronize, usable
from hgrn2.bench.bench_model import BenchModel, Setup
from hgrn2.bench.memory import peak_memory
from hgrn2.bench.models import build, check_available
from hgrn2.bench.settings import DecodeBench
from hgrn2.bench.timing import Sample, interleave, prepare_process
from hgrn2.errors import UserError
from hgrn2.generate.steps import Steps
from hgrn2.models.modes import reading
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement

COMPARED = 8  # greedy tokens of the fixed buffers that are held to those of the plain model


class Key(NamedTuple):
    """What is measured."""

    name: str
    context: int
    batch: int


@dataclass(frozen=True)
class _Ready:
    """A model that has read its prompt."""

    measured: BenchModel
    decode: Sample
    details: dict[str, Any]


def measure(bench: DecodeBench, record: Callable[[Row], None], progress: Progress = silent) -> list[str]:
    """Measure every model after every context and in every batch.

    On a CPU all of them take turns, and the rows go to `record` at the end. On a GPU each model has the memory to
    itself, its row goes to `record` at once, and one that fails leaves the others alone.

    Returns:
        A line for each measurement that failed on a GPU.
    """
    usable(bench.device)
    check_available(bench.measured)
    conditions = prepare_process(bench.limits)
    if bench.device == "cuda":
        return _one_by_one(bench, record, progress, {**conditions, "interleaved": False})
    keys = [
        Key(name, context, batch) for context in bench.contexts for batch in bench.batches for name in bench.measured
    ]
    models = {name: built(bench, name) for name in bench.measured}
    ready: dict[Key, _Ready] = {}
    for key in keys:
        progress(f"{key.name} reads {key.context} tokens", len(ready), len(keys))
        ready[key] = read_prompt(bench, models[key.name], key)
    samples = {key: one.decode for key, one in ready.items()}
    taken = interleave(samples, bench.limits, "decoding", progress)
    shortest = min(bench.contexts)
    for key, one in ready.items():
        speeds = [key.batch / seconds for seconds in taken[key]]
        base = [key.batch / seconds for seconds in taken[key._replace(context=shortest)]]
        record(_row(bench, key, one, speeds, statistics.median(base), conditions))
    return []


def _one_by_one(
    bench: DecodeBench, record: Callable[[Row], None], progress: Progress, conditions: dict[str, Any]
) -> list[str]:
    failures = []
    for name in bench.measured:
        progress(f"making {name}", 0, 1)
        with attempt(bench.model_seconds) as outcome:
            failures += _alone(bench, name, record, progress, conditions)
        if outcome.why:
            failures.append(f"{name}: {outcome.why}")
            progress(failures[-1], 1, 1)
    return failures


def _alone(
    bench: DecodeBench, name: str, record: Callable[[Row], None], progress: Progress, conditions: dict[str, Any]
) -> list[str]:
    """All measurements of a model, so that it is made once; shortest contexts first, as others refer to them."""
    measured, failures, base = built(bench, name), [], {}
    for key in (Key(name, context, batch) for batch in bench.batches for context in sorted(bench.contexts)):
        stage = f"{name}, batch {key.batch}, {key.context} tokens"
        with attempt(bench.model_seconds) as outcome:
            _one(bench, measured, key, stage, record, progress, conditions, base)
        if outcome.why:
            failures.append(f"{stage}: {outcome.why}")
            progress(failures[-1], 1, 1)
    return failures


def _one(
    bench: DecodeBench, measured: BenchModel, key: Key, stage: str, record: Callable[[Row], None], progress: Progress,
    conditions: dict[str, Any], base: dict[int, float],
) -> None:  # fmt: skip
    progress(f"{stage}: prompt", 0, 1)
    device = torch.device(bench.device)
    reset_peak(device)
    ready = read_prompt(bench, measured, key)
    seconds = interleave({key: ready.decode}, bench.limits, stage, progress)[key]
    speeds = [key.batch / each for each in seconds]
    ready.details.update(peak_bytes(device))
    base.setdefault(key.batch, statistics.median(speeds))
    record(_row(bench, key, ready, speeds, base[key.batch], conditions))


def _row(
    bench: DecodeBench, key: Key, ready: _Ready, speeds: list[float], base: float, conditions: dict[str, Any]
) -> Row:
    case = {**asdict(bench.measured_size), "dtype": bench.measured_dtype, "batch": key.batch, "context": key.context}
    case |= {"new_tokens": bench.tokens}
    if bench.state_dtype != "float32":
        case["state_dtype"] = bench.state_dtype
    details = {**ready.details, "of_shortest_context": round(statistics.median(speeds) / base, 4), **conditions}
    backend = ready.measured.step_backend or ready.measured.backend
    return measurement("decode", case, key.name, backend, speeds, "tokens/s", details)


def built(bench: DecodeBench, name: str) -> BenchModel:
    narrow = bench.state_dtype == "bfloat16"
    setup = Setup(
        device=torch.device(bench.device),
        dtype=getattr(torch, bench.measured_dtype),
        state_dtype=torch.bfloat16 if narrow else None,
        compile_steps=bench.compile,
    )
    return build(name, bench.measured_size, bench.seed, setup=setup)


def read_prompt(bench: DecodeBench, measured: BenchModel, key: Key) -> _Ready:
    """Read the prompt, and see what that and the decoding after it need of memory."""
    device, details = torch.device(bench.device), dict[str, Any](parameters=measured.parameters)
    generator = torch.Generator().manual_seed(bench.seed)
    prompt = torch.randint(bench.measured_size.vocab_size, (key.batch, key.context), generator=generator).to(device)
    with reading(measured.model):
        logits, state = measured.prefill(prompt[:, :8], 1)  # pays for what is made once
        _decode(measured, logits.argmax(-1, keepdim=True), state, 1)
        synchronize(device)
        with peak_memory() as prefill_peak:
            began = time.perf_counter()
            logits, state = measured.prefill(prompt, bench.tokens)
            synchronize(device)
            seconds = time.perf_counter() - began
        first = logits.argmax(-1, keepdim=True)
    details["state_bytes"] = measured.state_bytes(state)
    details["prefill_seconds"] = round(seconds, 4)
    if measured.steps is None:
        run = _calls(measured, first, state, bench.tokens)
    else:
        steps = measured.steps(key.batch)
        details |= {"captured": steps.captured, "compiled": bench.compile}
        details["tokens_as_without_graph"] = _agreement(measured, steps, first, state)
        run = _replays(steps, first, state, bench.tokens)
    with reading(measured.model), peak_memory() as decode_peak:
        run()
        synchronize(device)
    if bench.device == "cpu":  # resident memory of the process says nothing about a GPU
        details |= {"prefill_peak_bytes": prefill_peak.extra_bytes, "decode_peak_bytes": decode_peak.extra_bytes}

    def decode() -> float:
        with reading(measured.model):
            if bench.device == "cpu":
                return statistics.median(run())
            synchronize(device)
            began = time.perf_counter()
            run()
            synchronize(device)
            return (time.perf_counter() - began) / bench.tokens

    return _Ready(measured, decode, details)


def _calls(measured: BenchModel, first: Tensor, state: Any, tokens: int) -> Callable[[], list[float]]:
    return lambda: _decode(measured, first, measured.fork(state), tokens)


def _decode(measured: BenchModel, token: Tensor, state: Any, tokens: int) -> list[float]:
    """Seconds of each of `tokens` greedy steps; on a GPU those of starting it."""
    times = []
    for _ in range(tokens):
        began = time.perf_counter()
        logits, state = measured.step(token, state)
        token = logits.argmax(-1, keepdim=True)
        times.append(time.perf_counter() - began)
    return times


def _replays(steps: Steps, first: Tensor, state: Any, tokens: int) -> Callable[[], list[float]]:
    def run() -> list[float]:
        steps.load(state, first)
        times = []
        for _ in range(tokens):
            began = time.perf_counter()
            steps.run()
            times.append(time.perf_counter() - began)
        return times

    return run


def _agreement(measured: BenchModel, steps: Steps, first: Tensor, state: Any) -> float:
    """The share of the first tokens that equal those of the plain model; an error where most of the very first differ.

    Random weights make near ties, and after one that falls the other way the texts differ for good.
    """
    plain, mine, token = [], [], first
    with reading(measured.model):
        going = measured.fork(state)
        steps.load(state, first)
        for _ in range(COMPARED):
            logits, going = measured.step(token, going)
            token = logits.argmax(-1, keepdim=True)
            plain.append(token.squeeze(1))
            steps.run()
            mine.append(steps.chosen.clone())
    equal = torch.stack(plain) == torch.stack(mine)
    if equal[0].float().mean() < 0.5:
        raise UserError(f"{measured.name} chooses other tokens than the plain model; its speed would mean nothing")
    return round(float(equal.float().mean()), 4)
