"""The runs of a study: arm after arm here, or several arms at once in processes of their own.

All runs of an arm are made in one process, one after the other, so that its model is compiled once. What is to be run
next follows from the rows so far; so a study goes on from rows alone, without the folders of its runs.
"""

import contextlib
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol

from hgrn2.errors import UserError
from hgrn2.rows import Row
from hgrn2.study.protocol import Arm, Case, Study, next_cases
from hgrn2.study.record import losses
from hgrn2.study.training import Place, train_case

State = Literal["complete", "out of time", "interrupted", "failed"]
POLL_S = 1.0
SPARE = 1.05
"""A run is begun where so many times its estimated seconds are left."""
AROUND_S = {"cpu": 1.0, "cuda": 5.0}
"""What a run takes beside its steps: making the model, measuring."""
COMPILING_S = 40.0
"""More in the first run of an arm on a GPU."""


@dataclass(frozen=True)
class Ended:
    """How an arm ended: complete, or why not."""

    arm: Arm
    state: State
    text: str = ""


class View(Protocol):
    """Who is told what happens."""

    def started(self, case: Case) -> None: ...

    def finished(self, case: Case, row: Row) -> None: ...

    def ended(self, ended: Ended) -> None: ...


@dataclass(frozen=True)
class Told:
    """A `View` that sends what it is told to another process."""

    send: Callable[[tuple[str, Any]], None]

    def started(self, case: Case) -> None:
        self.send(("started", (case,)))

    def finished(self, case: Case, row: Row) -> None:
        self.send(("finished", (case, row)))

    def ended(self, ended: Ended) -> None:
        self.send(("ended", (ended,)))


def run_study(
    study: Study, arms: Sequence[Arm], place: Place, rows: Sequence[Row], view: View, *, jobs: int = 1,
    seconds: float = math.inf,
) -> list[Ended]:  # fmt: skip
    """Run what is missing of every arm.

    Args:
        study: what is compared.
        arms: its sides, in the order in which they are begun.
        place: data and device.
        rows: of earlier runs; those that belong to the study count as done.
        view: told every run and, before anything else happens, every new row.
        jobs: arms at once, each in a process of its own; several GPUs get them in turn.
        seconds: no run is begun that would not end in time, as far as that can be known; one that does not is stopped
            with a checkpoint.
    """
    place = replace(place, deadline=time.time() + seconds, at_once=min(jobs, len(arms)))
    if jobs == 1 or len(arms) == 1:
        return _one_by_one(study, arms, place, rows, view, seconds)
    return _side_by_side(study, arms, place, rows, view, seconds, jobs)


def run_arm(study: Study, arm: Arm, place: Place, rows: Sequence[Row], view: View, seconds: float) -> Ended:
    """Every run that an arm still lacks, one after the other; what goes wrong with it must not stop the others."""
    known = losses(rows, place.common(study), arm)
    own, others, begun = [row for row in rows if row.subject == arm.subject], rows, False
    try:
        while cases := next_cases(study, arm, known):
            case = cases[0]
            if not _fits(_needed(case, own or others, place.device.type, begun), place, seconds):
                return Ended(arm, "out of time", f"{len(cases)} or more runs are left")
            begun = True
            view.started(case)
            row = train_case(study, case, place)
            if row is None:
                late = time.time() > place.deadline
                return Ended(arm, "out of time" if late else "interrupted", f"stopped in {case.label}")
            own.append(row)
            known[case.lr, case.seed, case.tokens] = row.value
            view.finished(case, row)
    except KeyboardInterrupt:
        return Ended(arm, "interrupted")
    except (UserError, RuntimeError, OSError) as error:  # RuntimeError: out of memory, a kernel that cannot be built
        return Ended(arm, "failed", " ".join(str(error).split())[:300] or type(error).__name__)
    return Ended(arm, "complete")


def speed(rows: Sequence[Row], device: str) -> float | None:
    """Median tokens/s of an arm's runs on this kind of device; None where there were none."""
    found = [row.details["tokens_per_s"] for row in rows
             if row.details.get("device") == device and row.details.get("tokens_per_s")]  # fmt: skip
    return statistics.median(found) if found else None


def _needed(case: Case, rows: Sequence[Row], device: str, begun: bool) -> float:
    """Seconds of a run, by the speed of earlier ones; 0 where there were none."""
    rate = speed(rows, device)
    if rate is None:
        return 0.0
    around = AROUND_S.get(device, 1.0) + (COMPILING_S if device == "cuda" and not begun else 0.0)
    return SPARE * case.tokens / rate + around


def _fits(needed: float, place: Place, seconds: float) -> bool:
    """Whether to begin a run now. One that is longer than the whole budget is begun, and goes on in a later call."""
    left = place.deadline - time.time()
    return left > 0 and (needed <= left or needed > seconds)


def _one_by_one(
    study: Study, arms: Sequence[Arm], place: Place, rows: Sequence[Row], view: View, seconds: float
) -> list[Ended]:
    import torch

    found: list[Ended] = []
    for arm in arms:
        torch.compiler.reset()  # what was compiled for the last arm only fills the cache
        ended = run_arm(study, arm, place, rows, view, seconds)
        view.ended(ended)
        found.append(ended)
        if ended.state == "interrupted":
            break
    return found


@dataclass(frozen=True)
class _Running:
    arm: Arm
    process: BaseProcess
    answers: Connection
    gpu: int


def _side_by_side(
    study: Study, arms: Sequence[Arm], place: Place, rows: Sequence[Row], view: View, seconds: float, jobs: int
) -> list[Ended]:  # fmt: skip
    waiting, running, found = list(arms), list[_Running](), list[Ended]()
    gpus = _gpus() if place.device.type == "cuda" else []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                arm = waiting.pop(0)
                gpu = min(range(len(gpus)), key=[one.gpu for one in running].count) if gpus else 0
                visible = gpus[gpu] if gpus else None
                running.append(_start(study, arm, place, rows, seconds, jobs, gpu, visible))
            wait([one.answers for one in running], timeout=POLL_S)
            running = [one for one in running if not _heard(one, view, found)]
    except KeyboardInterrupt:
        _stop(running, view, found)
    return found


def _start(
    study: Study, arm: Arm, place: Place, rows: Sequence[Row], seconds: float, jobs: int, gpu: int, visible: str | None
) -> _Running:  # fmt: skip
    # Spawned, not forked: a process that has started PyTorch's threads must not be forked.
    context = multiprocessing.get_context("spawn")
    answers, theirs = context.Pipe(duplex=False)
    arguments = (study, arm, replace(place, quiet=True), rows, seconds, jobs, visible, theirs)
    process = context.Process(target=_child, args=arguments, daemon=False)
    process.start()
    theirs.close()
    return _Running(arm, process, answers, gpu)


def _heard(one: _Running, view: View, found: list[Ended]) -> bool:
    """Pass on what a process has said; returns whether it has ended."""
    with contextlib.suppress(EOFError):
        while one.answers.poll():
            what, values = one.answers.recv()
            getattr(view, what)(*values)
            if what == "ended":
                found.append(values[0])
        if one.process.exitcode is None:
            return False
    one.process.join()
    if all(ended.arm != one.arm for ended in found):
        ended = Ended(one.arm, "failed", f"its process ended with exit code {one.process.exitcode}")
        found.append(ended)
        view.ended(ended)
    return True


def _stop(running: list[_Running], view: View, found: list[Ended]) -> None:
    """Let every run save a checkpoint; a second Ctrl-C kills them."""
    try:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()
    except KeyboardInterrupt:
        for one in running:
            one.process.kill()
            one.process.join()
    for one in running:
        _heard(one, view, found)


def _child(
    study: Study, arm: Arm, place: Place, rows: Sequence[Row], seconds: float, jobs: int, visible: str | None,
    answers: Connection,
) -> None:  # fmt: skip
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the first process alone, which then asks the others to stop: once, not twice
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible  # before CUDA begins
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    view = Told(answers.send)
    with _term_as_interrupt():
        view.ended(run_arm(study, arm, place, rows, view, seconds))


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _end_with_parent() -> None:
    """Save and stop where the first process was killed: nobody would hear of another run."""
    import signal

    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _term_as_interrupt() -> Iterator[None]:
    """While the context lasts SIGTERM raises KeyboardInterrupt, as SIGINT does; steps under way end first."""
    import signal

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
