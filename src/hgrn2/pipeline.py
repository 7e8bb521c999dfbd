"""A stream of jobs through several processes: jobs are made while others are done, answers come in the jobs' order.

    with Workers(2) as workers:
        for answer in workers.stream(work, jobs): ...

Beside the processes this one has a thread that makes jobs ahead, so that none of them waits for a slow reader as long
as it is fast enough on average, and a thread for each process. At most `AHEAD` jobs a process are between being made
and their answers being used, whatever their number.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from hgrn2.errors import UserError
from hgrn2.pool import LATE, Ended, Worker, too_early

Job = TypeVar("Job")
Answer = TypeVar("Answer")
AHEAD = 3


class Workers:
    """Processes that stay for several streams, one stream at a time; `count` of 1 or less means none: jobs are then
    done here. They start with the first stream, and end with the context."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: list[Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.end()
        self._workers = []

    def stream(self, work: Callable[[Job], Answer], jobs: Iterable[Job]) -> Iterator[Answer]:
        """`map(work, jobs)`, with the same answers in the same order and the same errors.

        Args:
            work: picklable, sent to each process once.
            jobs: picklable each; iterated in a thread of this process.

        Raises:
            UserError: a process died. What `work` or `jobs` raise is raised where its answer would have come.
        """
        if self.count <= 1:
            yield from map(work, jobs)
            return
        if not self._workers:
            self._workers = [Worker(_do, None) for _ in range(self.count)]
        flow = _Flow(AHEAD * self.count)
        threads = [threading.Thread(target=flow.make, args=(jobs,), daemon=True)]
        threads += [threading.Thread(target=_attend, args=(one, work, flow), daemon=True) for one in self._workers]
        for thread in threads:
            thread.start()
        whole = False
        try:
            yield from flow.answers()
            whole = True
        finally:
            flow.stop()
            if not whole:  # a process may be long at its job, and its thread waits for it
                for worker in self._workers:
                    worker.process.terminate()
            for thread in threads:
                thread.join(LATE)
            if not whole:
                self.__exit__()


class _Sent(NamedTuple):
    """Before its jobs a process is told what to do with them."""

    work: Callable[[Any], Any]


_work: Callable[[Any], Any] | None = None


def _do(job: Any) -> Any:
    """In the process."""
    global _work
    if isinstance(job, _Sent):
        _work = job.work
        return None
    assert _work is not None
    return _work(job)


def _attend(worker: Worker, work: Callable[[Any], Any], flow: "_Flow") -> None:
    """In a thread: give a process one job after the other."""
    number = None
    try:
        if not worker.admitted:
            if not worker.pipe.poll(LATE):
                raise EOFError
            worker.admitted = bool(worker.pipe.recv()[1])
        worker.pipe.send(_Sent(work))
        good, said = worker.pipe.recv()
        while good and (taken := flow.take()) is not None:
            number, job = taken
            worker.pipe.send(job)
            good, said = worker.pipe.recv()
            if good:
                flow.answer(number, said)
        if not good:
            flow.fail(number, said)
    except (EOFError, OSError):
        worker.process.join(1)
        flow.fail(number, _ended(worker))
    except Exception as error:  # a job or an answer that cannot be sent
        flow.fail(number, error)


def _ended(worker: Worker) -> UserError:
    code = worker.process.exitcode
    why = "it did not start" if code is None else str(Ended(code))
    if not worker.admitted:
        return too_early(why)
    return UserError(
        f"a worker process ended early ({why}), for want of memory or because somebody ended it; try fewer processes"
    )


class _Flow:
    """Jobs on their way: made, taken by a process, answered, used; nothing runs further ahead than the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._made: list[tuple[int, Any]] = []
        self._answers: dict[int, Any] = {}
        self._due = 0  # number of the answer that is used next
        self._total: int | None = None
        self._errors: dict[int, BaseException] = {}
        self._stopped = False

    def make(self, jobs: Iterable[Any]) -> None:
        """In a thread: make jobs, as many ahead as may be."""
        number = 0
        try:
            for number, job in zip(itertools.count(), jobs):
                with self._changed:
                    self._changed.wait_for(lambda number=number: number < self._due + self._limit or self._stopped)
                    if self._stopped:
                        return
                    self._made.append((number, job))
                    self._changed.notify_all()
                number += 1
        except BaseException as error:
            self.fail(number, error)
        with self._changed:
            self._total = number
            self._changed.notify_all()

    def take(self) -> tuple[int, Any] | None:
        """The next job, as soon as there is one; None where no further one comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._made or self._total is not None or self._stopped)
            return self._made.pop(0) if self._made and not self._stopped else None

    def answer(self, number: int, answer: Any) -> None:
        with self._changed:
            self._answers[number] = answer
            self._changed.notify_all()

    def fail(self, number: int | None, error: BaseException) -> None:
        """An error in the place of an answer; without a number, of the next one that is missing."""
        with self._changed:
            self._errors.setdefault(self._due if number is None else number, error)
            self._changed.notify_all()

    def answers(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._due in self._answers or self._due in self._errors or self._due == self._total
                )
                if self._due in self._errors:
                    raise self._errors[self._due]
                if self._due == self._total:
                    return
                found = self._answers.pop(self._due)
                self._due += 1
                self._changed.notify_all()
            yield found

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
