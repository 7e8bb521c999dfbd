"""The runs of a plan, one after the other here, or several at once in processes of their own.

Several small runs can feed one GPU that a single one leaves idle most of the time. Each process trains, writes its row
into its run folder and ends; this process hands rows on. SIGINT and SIGTERM make every run save a checkpoint.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from hgrn2.errors import UserError
from hgrn2.pool import Ended, Pool
from hgrn2.reproduce.one_run import Job, execute, finished
from hgrn2.rows import Row
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


def attempt(job: Job, *, quiet: bool = True) -> Outcome:
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


def _side_by_side(jobs: Sequence[Job], view: View, end: Callable[[Outcome], None], parallel: int) -> None:
    """Every run has a process of its own. Ctrl-C lets all of them save a checkpoint; a second one kills them."""
    began = lambda number: view.started(jobs[number])  # noqa: E731
    with (
        _term_as_interrupt(),
        Pool(attempt, jobs, parallel, ready=partial(_share, parallel), leaves=_always, started=began) as pool,
    ):
        for interrupt in (pool.stop, pool.kill, None):
            try:
                _collect(pool, jobs, view, end)
                break
            except KeyboardInterrupt:
                if interrupt is None:
                    raise
                interrupt()
        if not pool.interrupted:
            for number in pool.left:
                end(Outcome(jobs[number], "failed", text="no process could be started for it"))


def _collect(pool: Pool[Job, Outcome], jobs: Sequence[Job], view: View, end: Callable[[Outcome], None]) -> None:
    while pool.going:
        for number, answer in pool.wait(POLL_S):
            end(_ended(jobs[number], answer) if isinstance(answer, Ended) else answer)
        view.going_on([jobs[number] for number in pool.busy])


def _ended(job: Job, ended: Ended) -> Outcome:
    if ended.code == -signal.SIGTERM:  # outside the steps nothing is lost by that
        return Outcome(job, "interrupted")
    return Outcome(job, "failed", text=f"its process ended with {ended}")


def _share(parallel: int) -> bool:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // parallel))
    return True


def _always(outcome: Outcome) -> bool:
    return True


def latest(job: Job) -> tuple[str, str, str]:
    """Step, loss and accuracy of a run that is under way, as last recorded; empty texts where nothing is yet."""
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
