"""A training run in the terminal: a panel that is redrawn in place, or plain lines where there is no terminal."""

import math
import sys
import time
from itertools import pairwise
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hgrn2.train.progress import Progress
from hgrn2.units import duration, number, rate

_REFRESH_S = 0.25  # at most four redraws a second,
_DRAW_SHARE = 0.01  # and never more than this share of the time, however slow the terminal
_PLAIN_S = 10.0  # without a terminal: seconds between lines
_MAX_WIDTH = 100
_BARS = "▁▂▃▄▅▆▇█"
_BARS_ASCII = "_.-=*#"


class TrainView:
    """Context manager that shows a run as it goes; feed it the records that `MetricsWriter` returns.

    `total_steps` and `budget_s` (seconds of training) say where the run ends; with both, whichever comes first.
    `quiet` shows nothing, for programs that read the output and for all ranks but the first.
    Nothing runs in the background: the panel is redrawn inside `update`, for steps at most four times a second and for
    about 1 % of the time, for evaluations and events at once. On leaving the block, by an error or Ctrl-C too, the last
    panel stays on the screen.
    """

    def __init__(
        self,
        title: str,
        *,
        total_steps: int | None = None,
        budget_s: float | None = None,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        # Left to itself, rich takes FORCE_COLOR for a terminal; a log that asks for colour must not get cursor moves.
        self.console = console or Console(force_terminal=sys.stdout.isatty())
        self.title = title
        self.quiet = quiet
        self.progress = Progress(total_steps, budget_s)
        self._redraws = self.console.is_terminal and not (self.console.is_dumb_terminal or self.console.is_jupyter)
        self._live: Live | None = None
        self._last_shown = -math.inf
        self._draw_cost_s = 0.0

    def __enter__(self) -> "TrainView":
        if self._redraws and not self.quiet:
            self._live = Live(get_renderable=self.panel, console=self.console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def update(self, record: dict[str, Any]) -> None:
        """Take in a record of any kind (hgrn2.train.metrics) and show it if it is time."""
        self.progress.take(record)
        if self.quiet:
            return
        now = time.monotonic()
        if self._live is not None:
            if record["kind"] != "step" or now - self._last_shown >= max(_REFRESH_S, self._draw_cost_s / _DRAW_SHARE):
                self._draw()
        elif record["kind"] == "eval":
            self._say(_eval_line(self.progress))
        elif record["kind"] == "event":
            self._say(record["text"])
        elif now - self._last_shown >= _PLAIN_S:
            self._last_shown = now
            self._say(_step_line(self.progress))

    def event(self, text: str, *, step: int | None = None, elapsed_s: float | None = None) -> None:
        """Show one line about what just happened; it stays until the next one.

        A resumed run says with `step` and `elapsed_s` where it stands before its first record.
        """
        at = self.progress.step if step is None else step
        self.update({"kind": "event", "step": at, "elapsed_s": elapsed_s, "text": text})

    def finish(self, text: str = "") -> None:
        """The run has ended: show it for the last time, with `text` as the last event. Later calls do nothing."""
        if self.progress.finished:
            return
        self.progress.finished = True
        self.progress.last_event = text or self.progress.last_event
        if self._live is not None:
            self._stop()
        elif not self.quiet:
            self._say(_finish_line(self.progress, text or "finished"))

    def panel(self) -> Panel:
        """The whole picture, as wide as the console up to 100 columns."""
        progress, width = self.progress, min(self.console.width, _MAX_WIDTH)
        of = f" of {progress.total_steps:,}" if progress.total_steps else ""
        body = Group(
            _bar(progress),
            Text(),
            _numbers(progress, wide=width >= 80),
            Text(),
            _curve(progress, width - 6, _BARS_ASCII if self.console.options.ascii_only else _BARS),
            Text(progress.last_event, style="dim", no_wrap=True, overflow="ellipsis"),
        )
        return Panel(
            body,
            title=Text(self.title, style="bold"),
            title_align="left",
            subtitle=Text(f"step {progress.step:,}{of}"),
            subtitle_align="right",
            border_style="cyan",
            padding=(1, 2),
            width=width,
        )

    def _draw(self) -> None:
        if self._live is not None:
            begin = time.monotonic()
            self._live.refresh()
            self._last_shown = time.monotonic()
            self._draw_cost_s = self._last_shown - begin

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()  # draws once more, so that the panel that stays is up to date
            self._live = None

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bar(progress: Progress) -> RenderableType:
    left = progress.seconds_left()
    times = f"{duration(progress.elapsed_s)} elapsed"
    if left is not None and not progress.finished:
        times += f" · {duration(left)} left"
    row = Table.grid(expand=True, padding=(0, 2, 0, 0))
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    fraction = progress.fraction()
    bar = ProgressBar(total=1.0, completed=fraction, complete_style="cyan", finished_style="green")
    row.add_row(bar, f"{fraction:.1%}", Text(times, style="dim"))
    return row


def _numbers(progress: Progress, wide: bool) -> Table:
    """Two columns of names and values; narrow consoles get short names."""
    train = Text(number(progress.loss), style="bold") if progress.loss_is_finite else Text("not finite", "bold red")
    held_out = Text(number(progress.eval_loss), style="bold")
    if wide:
        bits = progress.eval_bits_per_byte
        train.append(" nats" if progress.loss is not None and progress.loss_is_finite else "", style="not bold dim")
        held_out.append(" nats" if progress.eval_loss is not None else "", style="not bold dim")
        held_out.append(f"  {bits:.3f} bits/byte" if bits is not None else "", style="not bold dim")
    if progress.eval_accuracy is not None:
        held_out.append(f"  {progress.eval_accuracy:.1%} right")
    best = Text(number(progress.best_loss))
    if progress.best_loss is not None:
        best.append(f"  at step {progress.best_step:,}", style="dim")
    lr = f"{progress.lr:.2e}" if progress.lr is not None else "–"
    norm = number(progress.grad_norm, 2)
    table = Table.grid(expand=True, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True, ratio=1)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True, min_width=14)  # or the table shifts each time the speed changes its width
    table.add_row("train loss" if wide else "train", train, "speed", rate(progress.tokens_per_s))
    table.add_row("held-out loss" if wide else "held-out", held_out, "learning rate" if wide else "lr", lr)
    table.add_row("best held-out" if wide else "best", best, "gradient norm" if wide else "grad", norm)
    return table


def _curve(progress: Progress, width: int, bars: str) -> Text:
    points = progress.history.points
    if len(points) < 2:
        return Text("the loss curve follows", style="dim")
    label = f"loss {points[0]:.2f} "
    curve = sparkline(points, max(width - len(label), 1), bars)
    return Text.assemble((label, "dim"), (curve, "cyan"), no_wrap=True)


def sparkline(values: list[float], width: int, bars: str = _BARS) -> str:
    """Means of up to `width` equal stretches of values as bars between the lowest and the highest mean.

    On a log scale where all are positive: a loss falls fast and then slowly, and most of it would look flat.
    """
    width = min(width, len(values))
    edges = [index * len(values) // width for index in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if min(means) > 0:
        means = [math.log(value) for value in means]
    low, high = min(means), max(means)
    span = max(high - low, 1e-9)
    return "".join(bars[min(int((value - low) / span * len(bars)), len(bars) - 1)] for value in means)


def _step_line(progress: Progress) -> str:
    of = f"/{progress.total_steps:,}" if progress.total_steps else ""
    left = progress.seconds_left()
    parts = [
        f"step {progress.step:,}{of}",
        f"{progress.fraction():.1%}",
        f"loss {number(progress.loss) if progress.loss_is_finite else 'not finite'}",
        f"lr {progress.lr:.2e}" if progress.lr is not None else "",
        f"grad {number(progress.grad_norm, 2)}" if progress.grad_norm is not None else "",
        rate(progress.tokens_per_s),
        f"{duration(progress.elapsed_s)} elapsed",
        f"{duration(left)} left" if left is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def _eval_line(progress: Progress) -> str:
    bits = progress.eval_bits_per_byte
    parts = [
        f"eval at step {progress.step:,}",
        f"held-out loss {number(progress.eval_loss, 4)}",
        f"{bits:.4f} bits/byte" if bits is not None else "",
        f"{progress.eval_accuracy:.2%} right" if progress.eval_accuracy is not None else "",
        f"best {number(progress.best_loss, 4)} at step {progress.best_step:,}"
        if progress.best_loss is not None
        else "",
    ]
    return "  ".join(part for part in parts if part)


def _finish_line(progress: Progress, text: str) -> str:
    line = f"{text}  step {progress.step:,}  {duration(progress.elapsed_s)} elapsed"
    if progress.best_loss is not None:
        line += f"  best held-out loss {number(progress.best_loss, 4)} at step {progress.best_step:,}"
    return line
