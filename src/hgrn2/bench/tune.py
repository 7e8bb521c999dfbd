"""Measure the launch settings of the Triton kernels on this GPU and write them into the table that calls read.

One pass after the other: its candidates take turns while every other pass keeps its setting, and the quickest stays.
Kernels are built beforehand, many at a time, in processes of their own; the clock sees none of that.
"""

import contextlib
import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hgrn2.bench.calls import Implementation, ours
from hgrn2.bench.problems import Setting, cut, draw, dtype_of, two_heads
from hgrn2.bench.settings import Limits, OpsBench, parse_shape
from hgrn2.bench.timing import Sample, interleave, sample_of
from hgrn2.errors import UserError
from hgrn2.files import write_text
from hgrn2.gpu import architecture
from hgrn2.ops import hgru2_step
from hgrn2.ops.backend import choose
from hgrn2.ops.gated_outer_scan.triton import launch_table as table
from hgrn2.ops.gated_outer_scan.triton.launch_table import Launch
from hgrn2.ops.triton_support import TritonBackend
from hgrn2.pool import Pool
from hgrn2.progress import Progress, silent
from hgrn2.testing.large import expect

Key = tuple[str, str, int, str]
"""(pass, architecture, n, dtype), as in the table."""
FINALISTS = 4  # of a pass: those that are timed more than once
MOST_WORKERS = 14  # processes that build kernels, each with a gigabyte or two on the GPU
LONG_PASSES = ("join",)  # a pass that only long sequences take


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was found for one pass."""

    key: Key
    before: Launch
    after: Launch
    before_ms: float
    """Median of the whole call that was timed, with the setting before."""
    after_ms: float
    tried: int

    def __str__(self) -> str:
        op_pass, arch, n, dtype = self.key
        gain = f"{self.before_ms:.4g} -> {self.after_ms:.4g} ms"
        if self.after == self.before:
            return f"{op_pass} {arch} n {n} {dtype}: as it was, {self.after_ms:.4g} ms ({self.tried} tried)"
        changed = {k: v for k, v in asdict(self.after).items() if v != getattr(self.before, k)}
        told = ", ".join(f"{k} {getattr(self.before, k)} -> {v}" for k, v in changed.items())
        return f"{op_pass} {arch} n {n} {dtype}: {told}; {gain} ({self.tried} tried)"


@contextlib.contextmanager
def using(key: Key, launch: Launch) -> Iterator[None]:
    """Inside, calls in this process launch the pass with this setting."""
    rows = table.rows(str(table.TABLE))
    before = rows.get(key)
    rows[key] = asdict(launch)
    try:
        yield
    finally:
        if before is None:
            del rows[key]
        else:
            rows[key] = before


@dataclass(frozen=True)
class Job:
    """One pass to be measured."""

    setting: Setting
    """What is called."""
    key: Key
    before: Launch
    others: tuple[Launch, ...]


def tune(bench: OpsBench, file: Path, progress: Progress = silent) -> list[Choice]:
    """Measure every pass for the head sizes of the shapes and the dtype, and write `file`.

    The first shape of each head size is what is timed. Rows of the file about other GPUs, sizes and dtypes stay.
    """
    chosen = _settings(bench)
    jobs = [_job(setting, op_pass) for setting in chosen for op_pass in table.PASSES]
    able = build_all(jobs, progress)
    found = []
    with contextlib.ExitStack() as kept:
        for job in jobs:
            choice = quickest(job, able[job.key], call_of(job.setting, job.key[0]), bench.limits, progress)
            kept.enter_context(using(choice.key, choice.after))
            found.append(choice)
        for setting in chosen:
            _verify(setting)
    write(file, found, _command(bench))
    return found


def _settings(bench: OpsBench) -> list[Setting]:
    sizes: dict[int, Setting] = {}
    for shape in bench.measured_shapes:
        head = parse_shape(shape)[3]
        made = Setting(
            op="hgru2", shape=shape, lower_bound=bench.bound[0], dtype=bench.measured_dtype, device=bench.device
        )
        choose(torch.device(made.device), TritonBackend.name, dtype=dtype_of(made.dtype), keys=head, values=head)
        sizes.setdefault(head, made)
    return list(sizes.values())


def _job(setting: Setting, op_pass: str) -> Job:
    head = parse_shape(setting.shape)[3]
    key = (op_pass, architecture(setting.device), max(16, 1 << (head - 1).bit_length()), _dtype(setting, op_pass))
    before = table.launch(*key)
    others = tuple(launch for launch in table.candidates(op_pass, head, key[3]) if launch != before)
    return Job(timed_setting(setting, op_pass), key, before, others)


def _dtype(setting: Setting, op_pass: str) -> str:
    """A step works on states, which are float32 whatever the model is."""
    return "float32" if op_pass == "step" else setting.dtype


def timed_setting(setting: Setting, op_pass: str) -> Setting:
    """The shape on which a pass is timed: that of the setting, or one sequence of as many tokens."""
    batch, tokens, width, head = parse_shape(setting.shape)
    return replace(setting, shape=f"1x{batch * tokens}x{width}x{head}") if op_pass in LONG_PASSES else setting


def call_of(setting: Setting, op_pass: str) -> Callable[[], object]:
    """The call in which the pass has the largest share."""
    if op_pass == "step":
        return _step(setting)
    implementation = _implementation(setting)
    return implementation.forward if op_pass == "output" else implementation.both


def _implementation(setting: Setting) -> Implementation:
    problem = draw(setting)
    heads = setting.heads
    return ours(problem, TritonBackend.name, lambda: expect(two_heads(problem, heads)), lambda found: cut(found, heads))


def _step(setting: Setting) -> Callable[[], object]:
    problem = draw(setting)
    q, f, i = (x[:, 0].contiguous() for name in "qfi" if (x := problem.tensors[name]) is not None)
    state, lower_bound = problem.grad_state.clone(), problem.tensors["lower_bound"]

    def call() -> object:
        return hgru2_step(
            q, f, i, lower_bound, heads=setting.heads, state=state, inplace=True, backend=TritonBackend.name
        )

    return call


def quickest(
    job: Job, launches: Sequence[Launch], work: Callable[[], object], limits: Limits, progress: Progress = silent
) -> Choice:
    """The best of the launches for a pass, judged by the time of the whole call `work`.

    Each is tried once; the best few and the one before then take turns, and one of them replaces it only where its
    slower samples (80 %) are below the other's quicker ones (20 %): a tie changes nothing.
    """
    stage, device = f"{job.key[0]}, n {job.key[2]} {job.key[3]}", job.setting.device
    once = Limits(repeats=1, max_seconds=limits.max_seconds)
    rough = interleave(_samples(job.key, launches, work, device), once, stage, progress)
    best = sorted(launches, key=lambda launch: min(rough[launch]))[:FINALISTS]
    samples = _samples(job.key, dict.fromkeys((job.before, *best)), work, device)
    taken = interleave(samples, limits, f"{stage}: the best {len(samples)}", progress)
    middle = {launch: statistics.median(times) for launch, times in taken.items()}
    first = min(middle, key=lambda launch: middle[launch])
    clear = _quantile(taken[first], 0.8) < _quantile(taken[job.before], 0.2)
    after = first if clear else job.before
    return Choice(
        key=job.key,
        before=job.before,
        after=after,
        before_ms=1e3 * middle[job.before],
        after_ms=1e3 * middle[after],
        tried=len(launches),
    )


def _quantile(times: list[float], share: float) -> float:
    return sorted(times)[round(share * (len(times) - 1))]


def _samples(key: Key, launches: Iterable[Launch], work: Callable[[], object], device: str) -> dict[Launch, Sample]:
    def sample(launch: Launch, inner: Sample) -> float:
        with using(key, launch):
            return inner()

    return {launch: partial(sample, launch, sample_of(work, device)) for launch in launches}


def build_all(jobs: Sequence[Job], progress: Progress = silent) -> dict[Key, list[Launch]]:
    """The launches of each pass that this GPU can run, their kernels built and kept in Triton's cache."""
    tasks = [(job, launch) for job in jobs for launch in (job.before, *job.others)]
    able: dict[Key, list[Launch]] = {job.key: [] for job in jobs}
    for number, ((job, launch), runs) in enumerate(zip(tasks, _built(tasks), strict=True)):
        progress("building kernels", number, len(tasks))
        able[job.key] += [launch] if runs else []
    unusable = [key for job in jobs if job.before not in able[key := job.key]]
    if unusable:
        raise UserError(f"the present settings of {', '.join(key[0] for key in unusable)} do not run on this GPU")
    return able


def _built(tasks: Sequence[tuple[Job, Launch]]) -> Iterator[bool]:
    if all(job.setting.device == "cpu" for job, _ in tasks):
        yield from (_build(*task) for task in tasks)
        return
    workers = max(1, min(len(os.sched_getaffinity(0)) - 2, MOST_WORKERS, len(tasks)))
    with Pool(_build_one, tasks, workers) as pool:
        yield from pool.in_order()


def _build_one(task: tuple[Job, Launch]) -> bool:
    return _build(*task)


def _build(job: Job, launch: Launch) -> bool:
    """Run a call once; False where the setting needs more registers or shared memory than there is."""
    try:
        with using(job.key, launch):
            call_of(job.setting, job.key[0])()
            if job.setting.device == "cuda":
                torch.cuda.synchronize()
    except Exception as error:
        # OutOfResources, CompilationError, failures of PassManager
        if type(error).__module__.partition(".")[0] == TritonBackend.name:
            return False
        raise
    return True


def _verify(setting: Setting) -> None:
    """The settings found compute the right thing, or nothing is written."""
    wrong = [str(finding) for finding in _implementation(setting).check() if not finding.ok]
    if wrong:
        raise UserError(f"the settings found for {setting.shape} are wrong, nothing is written: {'; '.join(wrong)}")


def write(file: Path, choices: list[Choice], command: str) -> None:
    """Put rows into a table file; a row that was there for the same pass, GPU, size and dtype is replaced."""
    names = ("pass", "arch", "n", "dtype")
    rows: dict[Key, dict[str, Any]] = {}
    if file.exists():
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
            rows[tuple(row[name] for name in names)] = row  # type: ignore[index]
    for choice in choices:
        rows[choice.key] = {**dict(zip(names, choice.key, strict=True)), **asdict(choice.after)}
    lines = ",\n".join(f"    {json.dumps(rows[key])}" for key in sorted(rows))
    write_text(file, f'{{\n  "command": {json.dumps(command)},\n  "rows": [\n{lines}\n  ]\n}}\n')


def _command(bench: OpsBench) -> str:
    shapes = " ".join(bench.measured_shapes)
    return f"hgrn2 bench ops --tune --device {bench.device} --dtype {bench.measured_dtype} --shapes {shapes}"
