"""The runs of a plan, one after the other here, or several at once in processes of their own.

Several small runs can feed one GPU that a single one leaves idle most of the time. Each process trains, writes its row
into its run folder and ends; this process hands rows on. SIGINT and SIGTERM make every run save a checkpoint.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol

from hgrn2.errors import UserError
from hgrn2.reproduce.cells import Job, execute, finished
from hgrn2.rows import Row
from hgrn2.settings import from_dict, to_dict
from hgrn2.train.metrics import read_metrics

State = Literal["finished", "skipped", "interrupted", "failed", "no data"]
POLL_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a run of the plan ended."""

    job: Job
    state: State
    row: Row | None = None
    """Of runs that are finished now, or were (skipped)."""
    text: str = ""
    """Why, where it failed."""


class View(Protocol):
    """Who is told what happens."""

    def started(self, job: Job) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...

    def going_on(self, jobs: Sequence[Job]) -> None:
        """About once a second, with the runs that are under way in other processes."""
        ...


def run_all(
    jobs: Sequence[Job], view: View, record: Callable[[Row], Any], *, parallel: int = 1, quiet: bool = False
) -> list[Outcome]:
    """Run what is not finished; every new row goes to `record`. After Ctrl-C the runs that were not reached are left
    out of the result."""
    found, left = [], []
    for job in jobs:
        ready = _ready(job)
        if ready is None:
            left.append(job)
        else:
            if ready.row is not None:
                record(ready.row)  # a crash may have come between the run's end and its row's
            found.append(ready)
            view.ended(ready)

    def end(outcome: Outcome) -> None:
        if outcome.row is not None:
            record(outcome.row)
        found.append(outcome)
        view.ended(outcome)

    if parallel == 1:
        _one_by_one(left, view, end, quiet)
    else:
        _side_by_side(left, view, end, parallel)
    return found


def _ready(job: Job) -> Outcome | None:
    """A run that needs no time: finished before, or in a folder that it cannot have."""
    try:
        row = finished(job)
    except UserError as error:
        return Outcome(job, "failed", text=str(error))
    return None if row is None else Outcome(job, "skipped", row)


def attempt(job: Job, *, quiet: bool) -> Outcome:
    """Execute a run; what goes wrong with it must not stop the others."""
    try:
        row = execute(job, quiet=quiet)
    except KeyboardInterrupt:
        return Outcome(job, "interrupted")
    except (UserError, RuntimeError, OSError) as error:  # RuntimeError: out of memory, a kernel that cannot be built
        return Outcome(job, "failed", text=" ".join(str(error).split())[:300] or type(error).__name__)
    return Outcome(job, "interrupted") if row is None else Outcome(job, "finished", row)


def _one_by_one(jobs: Sequence[Job], view: View, end: Callable[[Outcome], None], quiet: bool) -> None:
    for job in jobs:
        view.started(job)
        outcome = attempt(job, quiet=quiet)
        end(outcome)
        if outcome.state == "interrupted":
            return


@dataclass(frozen=True)
class _Running:
    job: Job
    process: BaseProcess
    answer: Connection


def _side_by_side(jobs: Sequence[Job], view: View, end: Callable[[Outcome], None], parallel: int) -> None:
    waiting, running = list(jobs), list[_Running]()
    with _term_as_interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    view.started(job)
                    running.append(_start(job, parallel))
                running = _collect(running, view, end)
        except KeyboardInterrupt:
            _stop(running, end)


def _collect(running: list[_Running], view: View, end: Callable[[Outcome], None]) -> list[_Running]:
    """Wait a moment; returns those that are still under way."""
    wait([one.process.sentinel for one in running], timeout=POLL_S)
    view.going_on([one.job for one in running])
    left = []
    for one in running:
        if one.process.exitcode is None:
            left.append(one)
        else:
            end(_outcome(one))
    return left


def _stop(running: list[_Running], end: Callable[[Outcome], None]) -> None:
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
        end(_outcome(one))


def _start(job: Job, parallel: int) -> _Running:
    # Spawned, not forked: a process that has started PyTorch's threads must not be forked.
    context = multiprocessing.get_context("spawn")
    answer, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, theirs, parallel), daemon=False)
    process.start()
    theirs.close()
    return _Running(job, process, answer)


def _outcome(one: _Running) -> Outcome:
    """What a process that has ended said."""
    one.process.join()
    try:
        values = one.answer.recv() if one.answer.poll() else None
    except EOFError:
        values = None
    finally:
        one.answer.close()
    if values is not None:
        row = None if values["row"] is None else from_dict(Row, values["row"], "row")
        return Outcome(one.job, values["state"], row, values["text"])
    if one.process.exitcode == -signal.SIGTERM:  # outside the steps nothing is lost by that
        return Outcome(one.job, "interrupted")
    return Outcome(one.job, "failed", text=f"its process ended with exit code {one.process.exitcode}")


def _child(job: Job, answer: Connection, parallel: int) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the first process alone, which then asks the others to stop: once, not twice
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // parallel))
    outcome = attempt(job, quiet=True)
    row = None if outcome.row is None else to_dict(outcome.row)
    answer.send({"state": outcome.state, "row": row, "text": outcome.text})


def _end_with_parent() -> None:
    """Save and stop where the first process was killed: nobody would start another run, but this one would go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def latest(job: Job) -> tuple[str, str, str]:
    """Step, loss and share right of a run that is under way, as last recorded; empty texts where nothing is yet."""
    try:
        records = read_metrics(job.place / "metrics.jsonl")
    except UserError:
        return "", "", ""
    steps = [one for one in records if one["kind"] == "step"]
    right = [one["accuracy"] for one in records if one["kind"] == "eval" and one.get("accuracy") is not None]
    loss = steps[-1]["loss"] if steps else None
    return (
        f"step {steps[-1]['step']:,}" if steps else "",
        "" if loss is None else f"loss {loss:.4f}",
        f"{right[-1]:.2%} right" if right else "",
    )


@contextlib.contextmanager
def _term_as_interrupt() -> Iterator[None]:
    """While the context lasts SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
