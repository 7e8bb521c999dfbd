"""The view of a run: a panel on a terminal, plain lines elsewhere, and no time taken from training."""

import io
import math
import sys
import threading
from typing import Any

import pytest
from rich.console import Console

from hgrn2.train import view as view_module
from hgrn2.train.chart import chart
from hgrn2.train.progress import History, RunProgress
from hgrn2.train.view import TrainView

BEAT = TrainView._beat


class Clock:
    """Stands in for `time.monotonic`; it moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """With it nothing happens by itself: tests call `beat`, which a thread calls twice a second."""
    clock = Clock()
    monkeypatch.setattr(view_module.time, "monotonic", clock)
    monkeypatch.setattr(view_module.TrainView, "_beat", lambda self: None)
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
    console = Console(record=True, width=view.console.width, height=view.console.height, file=io.StringIO())
    console.print(view.panel())
    return console.export_text()


@pytest.mark.parametrize("width", [60, 76, 80, 100, 120])
def test_the_panel_fits_and_shows_the_numbers(width: int, clock: Clock) -> None:
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
    for part in ("1.750", "1.700", "at step 100", "3.00e-04", "0.81", "checkpoint saved", "●"):
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
    view.update(eval_record(40, 2.0))
    curve = [line for line in shown(view).splitlines() if "|" in line]
    assert len(curve) == 14
    assert all(line.strip("│ ").isascii() for line in curve)
    assert sum(line.count("o") for line in curve) == 1


@pytest.mark.parametrize(("height", "rows"), [(12, 18), (24, 23), (30, 28), (60, 28)])
def test_the_panel_uses_the_height_of_the_terminal(height: int, rows: int) -> None:
    console = terminal()
    console.height = height
    view = TrainView("run", console=console, parameters=1_810_000, epochs=lambda steps: steps / 400)
    for step in range(1, 101):
        view.update(step_record(step))
    text = shown(view)
    assert len(text.splitlines()) == rows
    assert "1.81M" in text
    assert "410k" in text
    assert "0.25 passes" in text


def test_the_chart_has_the_curve_and_marks_for_what_was_measured() -> None:
    falling = [(float(step), 4 / step) for step in range(1, 101)]
    lines = chart(falling, [(50.0, 0.5), (100.0, 0.1)], width=60, height=12).plain.splitlines()
    assert len(lines) == 12
    assert all(len(line) <= 60 for line in lines)
    assert lines[0].startswith("     4 ┤")
    assert lines[9].startswith("  0.04 ┤")
    marked = [(row, line.index("●")) for row, line in enumerate(lines[:10]) if "●" in line]
    assert [column for _, column in marked] == [34, 59]
    assert marked[0][0] < marked[1][0], "a lower loss is lower down"
    assert "held-out" in lines[-1]
    assert lines[-1].endswith("step 100")


def test_a_chart_of_losses_that_are_negative_equal_or_few() -> None:
    assert "●" in chart([(1.0, -1.0), (2.0, 1.0)], [(2.0, 0.0)], width=40, height=6).plain
    assert chart([(1.0, 2.0), (2.0, 2.0)], [], width=40, height=6).plain.count("\n") == 5
    assert "follows" in chart([(1.0, 2.0)], [], width=40, height=6).plain


def test_the_loss_shown_says_of_how_many_steps_it_is_the_mean(clock: Clock) -> None:
    view = TrainView("run", total_steps=100, console=plain())
    view.update(step_record(10, loss=2.0))
    assert "2.000 nats  of one step" in shown(view)
    view.update(step_record(20, loss=9.0), recent=(2.5, 20))
    assert "2.500 nats  mean of 20 steps" in shown(view)
    view.step(step=23, tokens=1, elapsed_s=9.0, loss=1.5, steps=20, tokens_per_s=10.0)
    assert "1.500 nats  mean of 20 steps" in shown(view)
    assert "step 23 of 100" in shown(view)


def test_the_clock_goes_on_while_a_step_takes_long(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrainView("run", budget_s=100.0, console=terminal()) as view:
        view.update(step_record(20))
        clock.now += 40
        assert "0:45 elapsed · 0:55 left" in shown(view)
        drawn: list[float] = []
        monkeypatch.setattr(view._live, "refresh", lambda: drawn.append(clock.now))
        view.beat()
        assert drawn == [clock.now]


def test_steps_between_records_are_wanted_twice_a_second(clock: Clock) -> None:
    view = TrainView("run", console=plain())
    assert view.wants_step()
    view.update(step_record(1))
    assert not view.wants_step()
    clock.now += 0.6
    assert view.wants_step()
    assert not TrainView("run", console=plain(), quiet=True).wants_step()


def test_the_panel_is_redrawn_by_the_clock_alone() -> None:
    with TrainView("run", total_steps=4000, console=terminal()) as view:
        drawn = threading.Event()
        view._live.refresh = drawn.set  # type: ignore[union-attr, method-assign]
        assert drawn.wait(20), "nothing was fed to it"


def test_a_slow_terminal_is_drawn_less_often(clock: Clock) -> None:
    with TrainView("run", total_steps=4000, console=terminal()) as view:
        waits: list[float] = []

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) == 3

        def slow() -> None:
            clock.now += 0.05

        view._live.refresh = slow  # type: ignore[union-attr, method-assign]
        view._draw_cost_s = 0.0
        view._ended.wait = wait  # type: ignore[method-assign]
        BEAT(view)
        view._ended = threading.Event()
    assert waits == pytest.approx([0.5, 5.0, 5.0]), "1 % of the time"


def test_a_terminal_that_is_gone_stops_the_run(clock: Clock) -> None:
    view = TrainView("run", console=plain())
    view.update(step_record(1))
    clock.now += 60

    def broken(line: str) -> None:
        raise BrokenPipeError

    view._say = broken  # type: ignore[method-assign]
    view._ended.wait = lambda seconds: False  # type: ignore[method-assign]
    BEAT(view)
    with pytest.raises(BrokenPipeError):
        view.update(step_record(2))


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
    assert lines[1].startswith("step 81/1,000  8.1%  train loss 2.979 (of one step)")
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
    progress = RunProgress(total_steps=1000)
    progress.take(step_record(501, elapsed_s=5000.0))
    assert progress.seconds_left() is None
    progress.take(step_record(601, elapsed_s=5100.0))
    assert progress.seconds_left() == pytest.approx(399.0)


def test_history_keeps_its_mean_in_bounded_memory() -> None:
    history = History(8)
    for value in range(1024):
        history.add(value, 2.0 * value)
        assert len(history.points) < 16
    assert history.points == sorted(history.points)
    assert sum(x for x, _ in history.points) / len(history.points) == pytest.approx(511.5)
    assert sum(y for _, y in history.points) / len(history.points) == pytest.approx(1023)


@pytest.mark.parametrize("width", [60, 100])
def test_memory_mfu_and_further_texts(width: int, clock: Clock) -> None:
    record = {**eval_record(10, 1.5), "corpora": {"wiki": 2.25, "a-very-long-name": 3.5, "code": None}}
    with TrainView("run", total_steps=20, console=terminal(width)) as view:
        view.update(step_record(10, mfu=0.4321, memory_bytes=3_200_000_000))
        view.update(record)
        text = shown(view)
    assert {len(line) for line in text.splitlines()} == {width}
    for part in ("3.2 GB", "43.2%", "wiki", "2.250", "a-very-long-…", "3.500", "code"):
        assert part in text
    lines = TrainView("run", total_steps=20, console=plain())
    with lines:
        lines.update(step_record(10, mfu=0.4321, memory_bytes=3_200_000_000))
        lines.update(record)
    said = lines.console.file.getvalue()  # type: ignore[attr-defined]
    assert "MFU 43.2%  3.2 GB" in said
    assert "wiki 2.2500  a-very-long-name 3.5000  code –" in said
