"""A stream of jobs over processes is `map`: answers in order, errors in their places, nothing far ahead."""

import os
import threading
from collections.abc import Iterator

import pytest

from hgrn2.errors import UserError
from hgrn2.pipeline import AHEAD, Workers


def work(job: int) -> tuple[int, int]:
    if job == 7:
        raise UserError("seven is not read")
    if job == 11:
        os._exit(3)
    return job * job, os.getpid()


def test_answers_come_in_order_from_several_processes_and_streams() -> None:
    made: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(20, 60):
            made.append(job)
            yield job

    with Workers(2) as workers:
        answers = []
        for answer in workers.stream(work, jobs()):
            answers.append(answer)
            assert len(made) <= len(answers) + 2 * AHEAD + 1  # memory is bounded by it
        assert [square for square, _ in answers] == [job * job for job in range(20, 60)]
        again = list(workers.stream(str, range(20, 24)))
        assert again == ["20", "21", "22", "23"]
        pids = {pid for _, pid in answers} | {pid for _, pid in workers.stream(work, range(20, 40))}
        assert os.getpid() not in pids
        assert len(pids) <= 2
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if "make" in t.name]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_in_its_place(count: int) -> None:
    with Workers(count) as workers:
        answers = workers.stream(work, iter(range(20)))
        assert [next(answers)[0] for _ in range(7)] == [n * n for n in range(7)]
        with pytest.raises(UserError, match="seven is not read"):
            next(answers)

        def broken() -> Iterator[int]:
            yield 1
            raise UserError("the reader stopped")

        answers = workers.stream(work, broken())
        assert next(answers)[0] == 1
        with pytest.raises(UserError, match="the reader stopped"):
            next(answers)


def test_a_process_that_dies_is_told_in_one_line() -> None:
    with Workers(2) as workers, pytest.raises(UserError, match=r"ended early \(exit code 3\), for want of memory"):
        list(workers.stream(work, [20, 11, 21]))
