"""Speed of the operators on each backend of this machine, beside their baselines, each of which has proved itself
right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch

from hgrn2.bench.calls import Implementation, ours
from hgrn2.bench.first_call import first_call, in_this_process
from hgrn2.bench.memory import beyond_results
from hgrn2.bench.op_baselines import Fla, sdpa
from hgrn2.bench.peaks import Peaks, measure_peaks
from hgrn2.bench.problems import Setting, cut, draw, dtype_of, two_heads
from hgrn2.bench.settings import Limits, OpsBench, parse_shape
from hgrn2.bench.timing import Events, interleave, prepare_process, sample_of
from hgrn2.errors import UserError
from hgrn2.ops import backend as backends
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement
from hgrn2.testing.compare import Finding
from hgrn2.testing.contracts import matches_reference
from hgrn2.testing.large import expect

PASSES = ("forward", "fwd+bwd")
FIRST = "first fwd+bwd"
OUTER = ("hgru2", "gated_outer_scan")
"""Operators that do the work of attention; the first one measured has SDPA beside it."""
SMALL = {"batch": 2, "tokens": 129}  # two chunks and a token: what the token loop is asked about


@dataclass(kw_only=True)
class Run:
    """One call of `measure`: what it was asked for, where rows and progress go, and what went wrong."""

    bench: OpsBench
    record: Callable[[Row], None]
    progress: Progress
    conditions: dict[str, Any] = field(default_factory=dict)
    peaks: Peaks | None = None
    wrong: dict[str, None] = field(default_factory=dict)
    """A line for each result that misses the reference or cannot be computed; its implementation gets no row."""
    small: dict[tuple[Setting, str], list[Finding]] = field(default_factory=dict)
    """What the token loop said about a setting and a backend."""


def measure(bench: OpsBench, record: Callable[[Row], None], progress: Progress = silent) -> list[str]:
    """Check and time every backend, then once more beside fla where it is asked for: it tunes itself for minutes.

    Returns:
        A line for each result that was wrong or could not be computed. Its implementation gets no row.
    """
    if bench.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that PyTorch can use; there is none here")
    for setting in settings(bench):
        available(bench, setting)  # a backend that was named and cannot serve is an error before the first minute
    fla = Fla() if "fla" in bench.baselines else None
    run = Run(bench=bench, record=record, progress=progress, conditions=prepare_process(bench.limits))
    if bench.device == "cuda":
        run.peaks = measure_peaks(record, progress, run.conditions)
    for setting in settings(bench):
        _compare(run, setting, available(bench, setting))
    if bench.first_call and "hgru2" in bench.ops:
        _first_calls(run)
    _sweep(run)
    if fla is not None:
        shapes = bench.against_shapes or bench.measured_shapes
        for number, setting in enumerate(x for x in settings(bench) if x.op == "hgru2" and x.shape in shapes):
            fast = tuple(name for name in available(bench, setting) if not backends.find(setting.op, name).plain)
            _compare(run, setting, fast, fla, first=number == 0)
        _sweep(run, fla)
    return list(run.wrong)


def settings(bench: OpsBench) -> list[Setting]:
    """Every shape, operator and, for hgru2, bound."""
    made = []
    for shape in bench.measured_shapes:
        for op in bench.ops:
            for lower_bound in bench.bound if op == "hgru2" else (0.0,):
                made.append(
                    Setting(
                        op=op, shape=shape, lower_bound=lower_bound, dtype=bench.measured_dtype, device=bench.device
                    )
                )
    return made


def available(bench: OpsBench, setting: Setting) -> tuple[str, ...]:
    """The backends to measure; one asked for by name that cannot serve is a `UserError`."""
    if bench.backends:
        return tuple(_choose(setting, name) for name in bench.backends)
    call = _call(setting)
    return tuple(one.name for one in backends.REGISTRY[setting.op] if one.timed(call) and one.supports(call)[0])


def _call(setting: Setting) -> backends.Call:
    head = parse_shape(setting.shape)[3] if setting.op in OUTER else 0
    return backends.Call(setting.op, torch.device(setting.device), dtype_of(setting.dtype), head, head)


def _choose(setting: Setting, name: str) -> str:
    op, device, dtype, keys, values, _ = _call(setting)
    return backends.choose(device, name, op=op, dtype=dtype, keys=keys, values=values).backend


def _compare(run: Run, setting: Setting, chosen: tuple[str, ...], fla: Fla | None = None, first: bool = False) -> None:
    """Check and time backends and baselines of one setting in turn; rows of this setting are written at its end."""
    implementations: list[Implementation] = []
    errors: dict[tuple[str, str], list[Finding]] = {}
    for implementation in _implementations(run, setting, chosen, fla):
        begun: list[float] = []
        if first and implementation.backend == "core":
            implementation = replace(implementation, check=partial(_timed_check, implementation, begun))
        findings = _checked(run, setting, implementation)
        if findings is None:
            continue
        implementations.append(implementation)
        errors[implementation.subject, implementation.backend] = findings
        if begun:
            run.record(_row(run, setting, FIRST, implementation, begun, {}, unit="s"))
    for direction in PASSES:
        for implementation, times, details in _timed(run, setting, implementations, direction, run.bench.limits):
            details["largest_error"] = _largest(errors[implementation.subject, implementation.backend], direction)
            run.record(_row(run, setting, direction, implementation, [1e3 * t for t in times], details))


def _timed_check(implementation: Implementation, seconds: list[float]) -> list[Finding]:
    """The check after a first call, whose seconds are put into the list."""
    seconds.append(in_this_process(implementation))
    return implementation.check()


def _largest(findings: list[Finding], direction: str) -> str:
    """The error of the output, or of whatever is furthest off, and what that is."""
    seen = [x for x in findings if direction != "forward" or x.what.startswith("output")]
    worst = max(seen, key=lambda finding: finding.error)
    return f"{worst.error:.2g} {worst.what}"


def _implementations(run: Run, setting: Setting, chosen: tuple[str, ...], fla: Fla | None) -> Iterator[Implementation]:
    problem, heads = draw(setting), setting.heads
    expected = cache(lambda: expect(two_heads(problem, heads)))
    for name in chosen:
        yield ours(problem, name, expected, lambda results: cut(results, heads))
    baseline = next((op for op in OUTER if op in run.bench.ops), None)
    if "sdpa" in run.bench.baselines and setting.op == baseline:
        yield sdpa(setting)
    if fla is not None:
        yield fla.core(problem, expected, heads)
        yield fla.kernel(problem, heads)


def _checked(run: Run, setting: Setting, implementation: Implementation) -> list[Finding] | None:
    """What the check found; None, and a line in `run.wrong`, where something is too far from the reference."""
    who = f"{setting.op} of {implementation.subject} on {implementation.backend}, {setting.shape} {setting.dtype}"
    run.progress(f"checking {who}", 0, 1)
    try:
        findings = implementation.check()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        run.wrong[f"{who}: does not fit into the memory of this GPU"] = None
        return None
    except Exception as error:  # whatever a baseline raises, the others are measured
        if implementation.subject == "hgrn2":
            raise
        run.wrong[f"{who}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"] = None
        return None
    small = _small_findings(run, setting, implementation.backend) if implementation.subject == "hgrn2" else []
    broken = {
        f"{who}, bound {setting.lower_bound}: {finding}": None for finding in (*findings, *small) if not finding.ok
    }
    run.wrong.update(broken)
    return None if broken else findings


def _small_findings(run: Run, setting: Setting, backend: str) -> list[Finding]:
    """Two chunks against the float64 token loop, which says that the chunked form may be the reference elsewhere."""
    head = parse_shape(setting.shape)[3]
    found = []
    for dtype, name in ((setting.dtype, backend), ("float64", "chunked")):
        small = replace(setting, shape=f"2x129x{2 * head}x{head}", dtype=dtype)
        if (small, name) not in run.small:
            run.small[small, name] = matches_reference(small.small(**SMALL), name, dtype_of(dtype))
        for finding in run.small[small, name]:
            found.append(finding._replace(what=f"{finding.what} against the token loop, {name} {dtype}"))
    return found


def _timed(
    run: Run, setting: Setting, implementations: list[Implementation], direction: str, limits: Limits
) -> Iterator[tuple[Implementation, list[float], dict[str, Any]]]:
    """Seconds of each implementation, and what else is known; they take turns."""
    calls = [implementation.call(direction) for implementation in implementations]
    on_gpu = setting.device == "cuda"
    beyond = [beyond_results(call) if on_gpu else None for call in calls]
    samples = {n: sample_of(call, setting.device) for n, call in enumerate(calls)}
    lower_bound = f" bound {setting.lower_bound}" if setting.op == "hgru2" else ""
    if not samples:
        return
    taken = interleave(samples, limits, f"{setting.op} {setting.shape}{lower_bound} {direction}", run.progress)
    for n, implementation in enumerate(implementations):
        sample, details = samples[n], {}
        if on_gpu:
            details["extra_bytes"] = beyond[n]
        if isinstance(sample, Events):
            details["host_ms"] = round(1e3 * sample.host_median, 4)
        yield implementation, taken[n], details


def _row(
    run: Run, setting: Setting, direction: str, implementation: Implementation, values: list[float], details: dict[str,
    Any],
    unit: str = "ms",
) -> Row:  # fmt: skip
    case = setting.case(direction)
    row = measurement(
        "ops", case, implementation.subject, implementation.backend, values, unit, {**details, **run.conditions}
    )
    if run.peaks is None or unit != "ms":
        return row
    return replace(row, details={**run.peaks.beside(setting, direction, row.median), **row.details})


def _first_calls(run: Run) -> None:
    """The first call of every kernel backend in a process of its own, at the first setting of hgru2."""
    setting = next(x for x in settings(run.bench) if x.op == "hgru2")
    for name in available(run.bench, setting):
        if backends.find(setting.op, name).plain:
            continue
        run.progress(f"first call on {name}, {setting.shape}", 0, 1)
        seconds, details = first_call(setting, name)
        case = setting.case(FIRST)
        run.record(measurement("ops", case, "hgrn2", name, [seconds], "s", {**details, **run.conditions}))


def _sweep(run: Run, fla: Fla | None = None) -> None:
    """hgru2 as `auto` runs it and its baselines at every length, with as many tokens in all."""
    bench = run.bench
    _, _, width, head = parse_shape(bench.measured_shapes[0])
    limits = replace(bench.limits, repeats=min(bench.limits.repeats, 5), max_seconds=min(bench.limits.max_seconds, 3))
    for tokens in bench.sweep:
        shape = f"{bench.sweep_tokens // tokens}x{tokens}x{width}x{head}"
        setting = Setting(
            op="hgru2", shape=shape, lower_bound=bench.bound[0], dtype=bench.measured_dtype, device=bench.device
        )
        implementations = list(_implementations(run, setting, (_choose(setting, "auto"),), fla))
        right = [each for each in implementations if _checked(run, setting, each) is not None]
        for direction in PASSES:
            for implementation, times, details in _timed(run, setting, right, direction, limits):
                case = {"op": "hgru2", "pass": direction, "tokens": tokens, "B x T": bench.sweep_tokens, "D": width}
                case |= {"n": head, "dtype": setting.dtype, "bound": setting.lower_bound}
                values = [1e3 * t for t in times]
                details |= run.conditions
                run.record(
                    measurement("sweep", case, implementation.subject, implementation.backend, values, "ms", details)
                )
