"""Where the time of a training step, or of a decoded token, goes: a row for each group of operators or kernels.

The step is timed without the profiler first, then profiled a few times. On a CPU, groups are the own time of operators
and `gaps` is Python between them; on a GPU, groups are kernels and `gaps` is the time in which none runs.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from hgrn2.bench import decode, train
from hgrn2.bench.attempt import attempt, copy_rate, usable
from hgrn2.bench.bench_model import BenchModel
from hgrn2.bench.decode import Key
from hgrn2.bench.floors import Peaks, floors
from hgrn2.bench.groups import GAPS, WHOLE, part_of
from hgrn2.bench.models import check_available
from hgrn2.bench.profile_settings import ProfileBench, Task
from hgrn2.bench.timing import Sample, interleave, prepare_process
from hgrn2.bench.trace import MARK, PART, Times, times
from hgrn2.gpu import matrix_rate
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement

SLOWEST = 600.0
"""Seconds that a model may take in all, compiling included, before the others are gone on with."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is profiled."""

    task: Task
    measured: BenchModel
    sample: Sample
    """Runs `steps` steps and returns the seconds of one."""
    steps: int
    case: dict[str, Any]
    floors: dict[str, float] = field(default_factory=dict)


def measure(bench: ProfileBench, record: Callable[[Row], None], progress: Progress = silent) -> list[str]:
    """Profile every model in every task.

    Returns:
        A line for each that failed.
    """
    device = usable(bench.device)
    check_available(bench.models)
    conditions = {**prepare_process(bench.limits), "interleaved": False}
    progress("measured peaks of this machine", 0, 1)
    peaks = Peaks(matrix_rate(device, getattr(torch, bench.measured_dtype)), copy_rate(device))
    conditions |= {"matmul_tflop_s": round(peaks.flops / 1e12, 3), "copy_gb_s": round(peaks.copied / 1e9, 1)}
    failures = []
    for task in bench.tasks:
        for name in bench.measured(task):
            stage = f"{name}, {'training' if task == 'train' else 'decoding'}"
            progress(f"making {stage}", 0, 1)
            with attempt(SLOWEST) as outcome:
                subject = (_training if task == "train" else _decoding)(bench, name, peaks)
                _profiled(bench, subject, stage, record, progress, conditions)
            if outcome.why:
                failures.append(f"{stage}: {outcome.why}")
    return failures


def _training(bench: ProfileBench, name: str, peaks: Peaks) -> _Subject:
    settings = bench.training()
    candidate = train.made_ready(settings, name, bench.length)
    case = {"task": "train", **asdict(bench.measured_size), "dtype": bench.measured_dtype}
    case |= {"batch": bench.tokens // bench.length, "tokens": bench.length}
    case |= {"compile": False if bench.compile == "none" else bench.compile}
    item = getattr(torch, bench.measured_dtype).itemsize
    own = floors(bench.measured_size.config(), peaks, tokens=bench.tokens, training=True, itemsize=item)
    return _Subject(
        task="train", measured=candidate.measured, sample=candidate.step,
        steps=train.QUEUED if bench.device == "cuda" else 1, case=case, floors=own if name == "hgrn2" else {},
    )  # fmt: skip


def _decoding(bench: ProfileBench, name: str, peaks: Peaks) -> _Subject:
    settings = bench.decoding()
    measured = decode.built(settings, name)
    ready = decode.read_prompt(settings, measured, Key(name, bench.context, bench.batch))
    case = {"task": "decode", **asdict(bench.measured_size), "dtype": bench.measured_dtype, "batch": bench.batch}
    case |= {"tokens": bench.context, "compile": bench.compile_steps and name == "hgrn2-graph"}
    case |= {} if bench.state_dtype == "float32" else {"state_dtype": bench.state_dtype}
    item = getattr(torch, bench.measured_dtype).itemsize
    own = floors(
        bench.measured_size.config(), peaks, tokens=bench.batch, training=False, itemsize=item, state=bench.state_dtype
    )
    return _Subject(
        task="decode", measured=measured, sample=ready.decode, steps=bench.new_tokens, case=case,
        floors=own if name.startswith("hgrn2") else {},
    )  # fmt: skip


def _profiled(
    bench: ProfileBench, subject: _Subject, stage: str, record: Callable[[Row], None], progress: Progress,
    conditions: dict[str, Any],
) -> None:  # fmt: skip
    """Time, profile, and hand the rows to `record`: groups by their time, then gaps and the whole step."""
    seconds = interleave({stage: subject.sample}, bench.limits, stage, progress)[stage]
    found: list[Times] = []
    with _parts_marked(subject.measured.model, bench.compile == "none"):
        for turn in range(bench.limits.repeats):
            progress(f"{stage}: profile", turn, bench.limits.repeats)
            found.append(_profile(subject.sample, gpu=bench.device == "cuda"))
    measured = subject.measured
    backend = (measured.step_backend if subject.task == "decode" else "") or measured.backend
    groups = {group for one in found for group in one.ms} - {GAPS}
    order = sorted(groups, key=lambda group: -sum(one.ms.get(group, 0.0) for one in found))

    def row(group: str, ms: list[float], details: dict[str, Any]) -> None:
        case = {**subject.case, "group": group}
        record(measurement("profile", case, measured.name, backend, ms, "ms", {**details, **conditions}))

    whole = sorted(one.whole for one in found)[len(found) // 2] / subject.steps
    for group in (*order, GAPS):
        ms = [one.ms.get(group, 0.0) / subject.steps for one in found]
        details: dict[str, Any] = {"of_profile": round(sorted(ms)[len(ms) // 2] / whole, 4) if whole else None}
        details["calls"] = round(found[-1].calls[group] / subject.steps, 1)
        if floor := subject.floors.get(group):
            details |= {
                "floor_ms": round(floor, 4),
                "of_roofline": round(floor / max(sorted(ms)[len(ms) // 2], 1e-9), 4),
            }
        longest = sorted(found[-1].names[group].items(), key=lambda pair: -pair[1])[: bench.names]
        details["longest"] = "; ".join(f"{name[:60]} {lasted / subject.steps:.3g}" for name, lasted in longest)
        row(group, ms, details)
    total = sum(subject.floors.values())
    details = {"profiled_ms": round(whole, 4), "host_ms": round(found[-1].host / subject.steps, 4)}
    ms = [1e3 * each for each in seconds]
    details |= {"floor_ms": round(total, 4), "of_roofline": round(total / sorted(ms)[len(ms) // 2], 4)} if total else {}
    row(WHOLE, ms, details)


def _profile(sample: Sample, *, gpu: bool) -> Times:
    """One sample under the profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler, record_function(MARK):
        sample()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return times(json.loads(file.read_text(encoding="utf-8"))["traceEvents"], gpu=gpu)


@contextmanager
def _parts_marked(model: nn.Module, eager: bool) -> Iterator[None]:
    """Annotate norms and gated units while they compute; a compiled model has no modules to tell."""
    with ExitStack() as stack:
        for module in model.modules() if eager else ():
            if part_of(type(module).__name__):
                marks: list[Any] = []

                def begin(module: nn.Module, inputs: Any, marks: list[Any] = marks) -> None:
                    marks.append(record_function(PART + type(module).__name__))
                    marks[-1].__enter__()

                def end(module: nn.Module, inputs: Any, output: Any, marks: list[Any] = marks) -> None:
                    marks.pop().__exit__(None, None, None)

                stack.callback(module.register_forward_pre_hook(begin).remove)
                stack.callback(module.register_forward_hook(end).remove)
        yield
