"""Jobs in processes: order, deaths, refusals, what is raised, and that nothing is left running."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hgrn2.errors import UserError
from hgrn2.pool import Ended, Pool


def squared(n: int) -> int:
    return n * n


def deadly(n: int) -> int:
    if n == 1:
        os._exit(3)
    return n


def pid(_: int) -> int:
    return os.getpid()


def refusing(n: int) -> int:
    if n == 1:
        raise UserError("not this one")
    return n


def wrong(n: int) -> float:
    return 1 / n


def never() -> bool:
    return False


def sleeping(marks: tuple[Path, bool]) -> str:
    """Until SIGTERM, which it answers, or does not hear."""
    mark, stubborn = marks
    told = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: told.set())
    mark.touch()
    for _ in range(600):
        time.sleep(0.1)
        if told.is_set():
            return "saved"
    return "slept"


def running() -> list[int]:
    return [child.pid or 0 for child in multiprocessing.active_children()]


def test_answers_come_with_their_numbers_and_in_order() -> None:
    with Pool(squared, range(9), 2) as pool:
        assert sorted(pool) == [(n, n * n) for n in range(9)]
    with Pool(squared, range(9), 2) as pool:
        assert list(pool.in_order()) == [n * n for n in range(9)]
    assert not running()


def test_a_process_that_dies_fails_its_job_alone() -> None:
    with Pool(deadly, range(3), 1) as pool:
        assert list(pool) == [(0, 0), (1, Ended(3)), (2, 2)]
        assert not pool.left
    assert (str(Ended(3)), str(Ended(-11))) == ("exit code 3", "signal SIGSEGV")
    with Pool(deadly, range(3), 1) as pool, pytest.raises(UserError, match=r"ended early \(exit code 3\).*__main__"):
        list(pool.in_order())


def test_a_process_may_end_with_its_answer() -> None:
    with Pool(pid, range(3), 1, leaves=lambda answer: True) as pool:
        assert len({answer for _, answer in pool}) == 3
    with Pool(pid, range(3), 1) as pool:
        assert len({answer for _, answer in pool}) == 1


def test_what_is_raised_there_is_raised_here() -> None:
    with Pool(refusing, range(3), 1) as pool, pytest.raises(UserError, match="not this one"):
        list(pool)
    with Pool(wrong, range(3), 1) as pool, pytest.raises(ZeroDivisionError) as caught:
        list(pool)
    assert "in a worker process" in caught.value.__notes__[0]
    assert not running()


def test_where_no_process_is_ready_the_jobs_are_left() -> None:
    with Pool(squared, range(3), 2, ready=never) as pool:
        assert list(pool) == []
        assert list(pool.left) == [0, 1, 2]
    with Pool(squared, range(3), 2, ready=never) as pool, pytest.raises(UserError, match="none could be started"):
        list(pool.in_order())


def test_an_iteration_that_is_left_early_leaves_nothing_running(tmp_path: Path) -> None:
    begun: list[int] = []
    with Pool(squared, range(100), 2, started=begun.append) as pool:
        next(iter(pool))
        assert running()
    assert not running()
    assert len(begun) < 10


def test_stopped_processes_have_a_say_and_killed_ones_have_none(tmp_path: Path) -> None:
    jobs = [(tmp_path / "patient", False), (tmp_path / "stubborn", True), (tmp_path / "late", False)]
    with Pool(sleeping, jobs, 2) as pool:
        while not (jobs[0][0].exists() and jobs[1][0].exists()):
            assert pool.wait(0.05) == []
        assert sorted(pool.busy) == [0, 1]
        pool.stop()
        while not (found := pool.wait(0.05)):
            pass
        assert found == [(0, "saved")]
        pool.kill()
        assert list(pool) == [(1, Ended(-signal.SIGKILL))]
        assert list(pool.left) == [2]
    assert not jobs[2][0].exists()
