"""Jobs in processes of their own, several at a time: one way to start them, to end them and to say what went wrong.

Processes are spawned: one that has started PyTorch's threads, or has used a GPU, must not be forked. Ctrl-C reaches
this process alone, which then ends the others; where this one is killed, they end too.

    with Pool(work, jobs, workers) as pool:
        for number, answer in pool: ...      # as they come
        for answer in pool.in_order(): ...   # or in the order of the jobs
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from hgrn2.errors import UserError

Job = TypeVar("Job")
Answer = TypeVar("Answer")
LATE = 120.0
"""Seconds after which a process that has not come up is not waited for."""
GRACE = 5.0
"""Seconds that a process has to end before it is ended by force."""


@dataclass(frozen=True)
class Ended:
    """Instead of an answer: the process that had the job ended before it gave one."""

    code: int

    def __str__(self) -> str:
        return f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"


class Pool(Generic[Job, Answer]):
    """Processes that do jobs one after the other; one that dies is replaced, and fails the job that it had alone.

    Args:
        work: what a process does with a job; a function of a module or a `partial` of one, as `ready`.
        jobs: picklable; they are handed out in their order.
        workers: processes at a time.
        ready: called first in every process, which is not used where it returns False.
        leaves: whether the process that gave this answer ends with it, and the next job gets a fresh one.
        started: told the number of each job that a process begins.

    An exception that `work` raises is raised here. Where no process can be had, the iteration ends with jobs `left`.
    """

    def __init__(
        self,
        work: Callable[[Job], Answer],
        jobs: Sequence[Job],
        workers: int,
        *,
        ready: Callable[[], bool] | None = None,
        leaves: Callable[[Answer], bool] = lambda answer: False,
        started: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._work, self._jobs, self._ready, self._leaves, self._started = work, jobs, ready, leaves, started
        self.left = deque(range(len(jobs)))
        """Numbers of the jobs that no process has begun."""
        self._most = workers
        self.interrupted = False
        """Whether `stop` or `kill` was called."""
        self._workers: list[Worker] = []
        self._done: list[tuple[int, Answer | Ended]] = []

    def __enter__(self) -> "Pool[Job, Answer]":
        return self

    def __exit__(self, *_: Any) -> None:
        """Whatever they do: an iteration that is left early leaves nothing running."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.end()
        self._workers = []

    @property
    def busy(self) -> list[int]:
        """Numbers of the jobs that are under way."""
        return [worker.number for worker in self._workers if worker.number is not None]

    @property
    def going(self) -> bool:
        """Whether answers are still to come."""
        return bool(self._done or self._workers or (self.left and self._most > 0))

    def wait(self, timeout: float | None = None) -> list[tuple[int, Answer | Ended]]:
        """The answers that have come, with the numbers of their jobs; none where `timeout` seconds brought none."""
        self._fill()
        if self._workers and not self._done:
            late = [worker.began + LATE - time.monotonic() for worker in self._workers if not worker.admitted]
            limit = min((max(0.0, one) for one in (*late, *(() if timeout is None else (timeout,)))), default=None)
            ends = [end for worker in self._workers for end in (worker.pipe, worker.process.sentinel)]
            woken = connection.wait(ends, limit)
            for worker in list(self._workers):
                if worker.pipe in woken or worker.process.sentinel in woken:
                    self._hear(worker)
                elif not worker.admitted and time.monotonic() - worker.began > LATE:
                    self._drop(worker)
            self._fill()  # before the answers are used, so that nobody waits for that
        done, self._done = self._done, []
        return done

    def __iter__(self) -> Iterator[tuple[int, Answer | Ended]]:
        while self.going:
            yield from self.wait()

    def in_order(self) -> Iterator[Answer]:
        """The answers in the order of the jobs; a process that dies is a `UserError`."""
        found: dict[int, Answer] = {}
        due = 0
        for number, answer in self:
            if isinstance(answer, Ended):
                raise too_early(str(answer))
            found[number] = answer
            while due in found:
                yield found.pop(due)
                due += 1
        if self.left:
            raise too_early("none could be started")

    def stop(self) -> None:
        """Begin no further job and send SIGTERM to the processes; what they still answer can be waited for."""
        self._most, self.interrupted = 0, True
        for worker in self._workers:
            worker.process.terminate()
        for worker in [worker for worker in self._workers if worker.number is None]:
            self._drop(worker)

    def kill(self) -> None:
        """As `stop`, but they have no say."""
        self.stop()
        for worker in self._workers:
            worker.process.kill()

    def _fill(self) -> None:
        idle = [worker for worker in self._workers if worker.number is None]
        for _ in range(min(self._most - len(self._workers), len(self.left) - len(idle))):
            self._workers.append(Worker(self._work, self._ready))
        for worker in idle:
            if worker.admitted and self.left and self._most > 0:
                worker.number = self.left.popleft()
                self._started(worker.number)
                with contextlib.suppress(OSError):  # it is dead, which is heard next
                    worker.pipe.send(self._jobs[worker.number])
        for worker in idle:
            if worker.number is None and (len(self._workers) > self._most or not self.left):
                self._drop(worker)

    def _hear(self, worker: "Worker") -> None:
        """What a process says, or that it is dead."""
        try:
            said = worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):
            said = None
        if said is None:
            number, code = worker.number, self._drop(worker)
            if number is not None:
                self._done.append((number, Ended(code)))
            elif not worker.admitted:
                self._most -= 1
        elif not worker.admitted:
            worker.admitted = bool(said[1])
            if not worker.admitted:
                self._drop(worker)
                self._most -= 1
        else:
            self._take(worker, *said)

    def _take(self, worker: "Worker", good: bool, answer: Any) -> None:
        number, worker.number = worker.number, None
        if not good:
            raise answer
        assert number is not None
        self._done.append((number, answer))
        if self._leaves(answer):
            self._drop(worker)

    def _drop(self, worker: "Worker") -> int:
        self._workers.remove(worker)
        return worker.end()


class Worker:
    """A process and this side of its pipe: told jobs, it answers (True, what `work` returned) or (False, its error).

    The first thing it says is what `ready` returned.
    """

    def __init__(self, work: Callable[[Any], Any], ready: Callable[[], bool] | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, work, ready))
        self.process.start()
        other.close()
        self.began = time.monotonic()
        self.admitted = False
        self.number: int | None = None

    def end(self) -> int:
        """End it, by itself where it can; returns its exit code."""
        self.pipe.close()
        for force in (self.process.terminate, self.process.kill):
            self.process.join(GRACE)
            if self.process.exitcode is not None:
                break
            force()
        self.process.join()
        return self.process.exitcode or 0


def _serve(pipe: Connection, work: Callable[[Any], Any], ready: Callable[[], bool] | None) -> None:
    """In the process: answer every job."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C is the parent's, which ends this process: once, not twice
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent has closed its side
        pipe.send((True, ready is None or ready()))
        while True:
            pipe.send(_answer(work, pipe.recv()))


def _answer(work: Callable[[Any], Any], job: Any) -> tuple[bool, Any]:
    try:
        return True, work(job)
    except Exception as error:
        if not isinstance(error, UserError):
            error.add_note("in a worker process:\n" + traceback.format_exc())
        return False, error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def too_early(why: str) -> UserError:
    """What is said of processes that died or did not come up."""
    return UserError(
        f"a worker process ended early ({why}); a script that has work done by several workers needs the usual "
        "`if __name__ == '__main__':` around its own code, or workers=1"
    )
