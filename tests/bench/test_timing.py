"""Repeats in turn, the clock's limits, and memory as the system sees it."""

import sys
from collections.abc import Callable

import pytest
import torch

from hgrn2.bench import timing
from hgrn2.bench.memory import peak_memory
from hgrn2.bench.settings import Limits
from hgrn2.bench.timing import interleave, prepare_process, repeated


class Clock:
    """Time that passes only in `work`."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float) -> float:
        self.now += seconds
        return seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def subject(name: str) -> Callable[[], float]:
        def sample() -> float:
            calls.append(name)
            return float(len(calls))

        return sample

    seen: list[tuple[str, int, int]] = []
    taken = interleave(
        {name: subject(name) for name in "abc"}, Limits(repeats=2), "stage", lambda *told: seen.append(told)
    )
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert taken == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}
    assert seen == [("stage", 0, 3), ("stage", 1, 3), ("stage", 2, 3), ("stage", 3, 3)]


def test_a_slow_call_stops_early_and_keeps_at_least_one_sample(clock: Clock) -> None:
    samples = {"slow": lambda: clock.work(3), "endless": lambda: clock.work(12), "quick": lambda: clock.work(1)}
    taken = interleave(samples, Limits(repeats=6, max_seconds=10))
    # Slow stops once 10 s are used; the round of endless that should not count is the only one that it gets.
    assert {name: len(times) for name, times in taken.items()} == {"slow": 4, "endless": 1, "quick": 6}
    assert clock.now == 3 * 5 + 12 + 7


def test_quick_calls_are_repeated_within_a_sample(clock: Clock) -> None:
    sample = repeated(lambda: clock.work(1), at_least=4.5)
    assert sample() == 1
    assert clock.now == 2 + 5  # two to find out how quick it is, five to last as long as asked for
    assert sample() == 1
    assert clock.now == 2 + 5 + 5
    assert repeated(lambda: clock.work(100), at_least=4.5)() == 100
    assert clock.now == 12 + 300


def test_threads_are_set_and_the_process_described() -> None:
    assert set(prepare_process(Limits(threads=1))) == {"freed_memory_kept", "interleaved"}
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_memory_counts_what_is_freed_again_and_what_was_freed_before() -> None:
    prepare_process(Limits())  # freed memory stays with the process: it must count all the same
    size = 64 << 20
    torch.ones(size // 4).sum()
    with peak_memory() as peak:
        torch.ones(size // 4).sum()
    with peak_memory() as quiet:
        torch.ones(16).sum()
    assert peak.extra_bytes is not None
    assert size <= peak.extra_bytes < 1.3 * size
    assert quiet.extra_bytes is not None
    assert quiet.extra_bytes < size // 8
