"""The view of a run: a panel on a terminal, plain lines elsewhere, and no time taken from training."""

import io
import math
import sys
from typing import Any

import pytest
from rich.console import Console

from hgrn2.train import view as view_module
from hgrn2.train.progress import History, Progress
from hgrn2.train.view import TrainView, sparkline


class Clock:
    """Stands in for `time.monotonic`; it moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(view_module.time, "monotonic", clock)
    return clock


def step_record(step: int, **changes: Any) -> dict[str, Any]:
    loss = 1.2 + 4 * math.exp(-step / 100)
    record = {"kind": "step", "step": step, "tokens": 4096 * step, "loss": loss, "lr": 3e-4, "grad_norm": 0.81}
    return {**record, "tokens_per_s": 12345.0, "elapsed_s": 0.25 * step, **changes}


def eval_record(step: int, loss: float) -> dict[str, Any]:
    same = {"kind": "eval", "step": step, "tokens": 4096 * step, "elapsed_s": 0.25 * step}
    return {**same, "loss": loss, "bits_per_byte": loss / math.log(2)}


def terminal(width: int = 80, encoding: str = "utf-8") -> Console:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(record=True, width=width, height=40, force_terminal=True, file=stream, legacy_windows=False)


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def shown(view: TrainView) -> str:
    """The panel as plain text."""
    console = Console(record=True, width=view.console.width, file=io.StringIO())
    console.print(view.panel())
    return console.export_text()


@pytest.mark.parametrize("width", [60, 76, 80, 100, 120])
def test_the_panel_fits_and_shows_the_numbers(width: int) -> None:
    with TrainView("run [bold]seven", total_steps=1000, console=terminal(width)) as view:
        for step in range(1, 301):
            view.update(step_record(step))
        view.update(eval_record(100, 1.7))
        view.update(eval_record(300, 1.75))
        view.event("checkpoint saved")
        text = shown(view)
    lines = text.splitlines()
    assert {len(line) for line in lines} == {min(width, 100)}
    for part in ("run [bold]seven", "step 300 of 1,000", "30.0%", "1:15 elapsed", "2:55 left", "12.3k tokens/s"):
        assert part in text
    for part in ("1.750", "1.700", "at step 100", "3.00e-04", "0.81", "checkpoint saved", "█"):
        assert part in text
    assert "…" not in text, "nothing may be cut off"


def test_a_panel_without_records_and_one_with_a_budget() -> None:
    view = TrainView("fresh", budget_s=60.0, console=terminal())
    assert "0.0%" in shown(view)
    assert "1:00 left" in shown(view)
    view.update(step_record(100))
    assert view.progress.fraction() == pytest.approx(25 / 60)
    assert view.progress.seconds_left() == pytest.approx(35)


def test_terminals_without_unicode_get_ascii() -> None:
    view = TrainView("run", console=terminal(encoding="ascii"))
    for step in range(1, 50):
        view.update(step_record(step))
    assert not set(shown(view)) & set(view_module._BARS)


def test_redraws_are_at_most_four_a_second(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrainView("run", total_steps=4000, console=terminal()) as view:
        draws = []
        monkeypatch.setattr(view._live, "refresh", lambda: draws.append(clock.now))
        for step in range(1, 1001):
            clock.now += 0.01
            view.update(step_record(step))
    assert 30 <= len(draws) <= 41, "in ten seconds"


def test_a_slow_terminal_is_drawn_less_often(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrainView("run", total_steps=4000, console=terminal()) as view:
        spent = []

        def slow() -> None:
            clock.now += 0.05
            spent.append(0.05)

        monkeypatch.setattr(view._live, "refresh", slow)
        begin = clock.now
        for step in range(1, 6001):
            clock.now += 0.01
            view.update(step_record(step))
    assert sum(spent) <= 0.012 * (clock.now - begin) + 0.05
    assert len(spent) > 5


def test_the_terminal_is_left_clean_after_an_error() -> None:
    console = terminal()
    with pytest.raises(KeyboardInterrupt), TrainView("run", console=console):
        raise KeyboardInterrupt
    console.file.seek(0)
    output = console.file.read()
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1, "the cursor is hidden once and shown again"


def test_plain_output_has_no_control_codes_and_few_lines(clock: Clock) -> None:
    console = plain()
    with TrainView("run", total_steps=1000, console=console) as view:
        for step in range(1, 1001):
            clock.now += 0.125
            view.update(step_record(step))
            if step % 500 == 0:
                view.update(eval_record(step, 2.0 - step / 1000))
        view.event("saved [red]x[/red]")
        view.finish("trained")
        view.finish("trained")
    output = console.file.getvalue()
    lines = output.splitlines()
    assert "\x1b" not in output
    assert "\r" not in output
    assert sum(line.startswith("step ") for line in lines) == 13, "125 seconds, a line every 10"
    assert [line for line in lines if line.startswith("eval ")] == [
        "eval at step 500  held-out loss 1.5000  2.1640 bits/byte  best 1.5000 at step 500",
        "eval at step 1,000  held-out loss 1.0000  1.4427 bits/byte  best 1.0000 at step 1,000",
    ]
    assert "saved [red]x[/red]" in lines
    assert lines[-1] == "trained  step 1,000  4:10 elapsed  best held-out loss 1.0000 at step 1,000"
    assert lines[1].startswith("step 81/1,000  8.1%  loss ")
    assert "lr 3.00e-04  grad 0.81  12.3k tokens/s  0:20 elapsed  3:49 left" in lines[1]


def test_a_log_that_forces_colour_gets_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with TrainView("run", total_steps=10) as view:
        view.update(step_record(1))
        view.finish()
    assert "step 1/10" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_quiet_shows_nothing() -> None:
    for console in (plain(), terminal()):
        with TrainView("run", console=console, quiet=True) as view:
            view.update(step_record(1))
            view.event("x")
            view.finish("y")
        console.file.seek(0)
        assert console.file.read() == ""


def test_a_loss_that_is_not_finite_is_said_and_does_not_spoil_the_mean() -> None:
    view = TrainView("run", console=plain())
    view.update(step_record(1, loss=2.0))
    view.update(step_record(2, loss=None, grad_norm=None))
    assert "not finite" in shown(view)
    view.update(step_record(3, loss=2.0))
    assert view.progress.loss == pytest.approx(2.0)
    assert "not finite" not in shown(view)


def test_an_interrupted_run_is_not_shown_as_complete() -> None:
    view = TrainView("run", total_steps=1000, console=plain())
    view.update(step_record(250))
    view.finish("interrupted")
    assert view.progress.fraction() == 0.25


def test_a_resumed_run_stands_where_it_stopped() -> None:
    view = TrainView("run", total_steps=1000, console=plain())
    view.event("resumed", step=800, elapsed_s=90.0)
    assert "step 800 of 1,000" in shown(view)
    assert "80.0%" in shown(view)
    assert "1:30 elapsed" in shown(view)


def test_time_left_after_a_resume_counts_this_sessions_pace() -> None:
    progress = Progress(total_steps=1000)
    progress.take(step_record(501, elapsed_s=5000.0))
    assert progress.seconds_left() is None
    progress.take(step_record(601, elapsed_s=5100.0))
    assert progress.seconds_left() == pytest.approx(399.0)


def test_history_keeps_its_mean_in_bounded_memory() -> None:
    history = History(8)
    for value in range(1024):
        history.add(float(value))
        assert len(history.points) < 16
    assert history.points == sorted(history.points)
    assert sum(history.points) / len(history.points) == pytest.approx(511.5)


def test_sparkline_follows_the_curve() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8.0], 8) == sparkline([10, 20, 30, 40, 50, 60, 70, 80.0], 8)
    falling = sparkline([8.0 / (1 + n) for n in range(100)], 20)
    assert len(falling) == 20
    assert falling[0] == "█"
    assert falling[-1] == "▁"
    assert list(falling) == sorted(falling, reverse=True)
    assert sparkline([2.0, 2.0], 5) == "▁▁"
    assert sparkline([-1.0, 1.0], 2) == "▁█"
