"""A training run in the terminal: a panel that is redrawn in place, or plain lines where there is no terminal."""

import math
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hgrn2.memory import readable
from hgrn2.train.chart import chart
from hgrn2.train.progress import RunProgress
from hgrn2.units import duration, number, rate, short

_BEAT_S = 0.5  # between redraws of the panel,
_DRAW_SHARE = 0.01  # which never take more than this share of the time, however slow the terminal
_PLAIN_S = 10.0  # without a terminal: seconds between lines
_MAX_WIDTH = 100
_CHART_ROWS = (6, 16)  # fewest and most
_OTHER_ROWS = 13  # of the panel, beside the chart, with a line to spare
_CORPORA = 6  # shown, at most; two in a row


class TrainView:
    """Context manager that shows a run as it goes; feed it the records that `MetricsWriter` returns.

    `total_steps` and `budget_s` (seconds of training) say where the run ends; with both, whichever comes first.
    `parameters` and `epochs` (passes over the data after a number of steps) are shown where they are given.
    `quiet` shows nothing, for programs that read the output and for all ranks but the first.

    The panel follows the clock: a thread redraws it twice a second, for about 1 % of the time, however long a step or a
    measurement takes. Without a terminal there is a line every ten seconds. On leaving the block, by an error or
    Ctrl-C too, the last panel stays on the screen.
    """

    def __init__(
        self,
        title: str,
        *,
        total_steps: int | None = None,
        budget_s: float | None = None,
        parameters: int | None = None,
        epochs: Callable[[int], float] | None = None,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        # Left to itself, rich takes FORCE_COLOR for a terminal; a log that asks for colour must not get cursor moves.
        self.console = console or Console(force_terminal=sys.stdout.isatty())
        self.title = title
        self.quiet = quiet
        self.parameters, self.epochs = parameters, epochs
        self.progress = RunProgress(total_steps, budget_s)
        self._redraws = self.console.is_terminal and not (self.console.is_dumb_terminal or self.console.is_jupyter)
        self._live: Live | None = None
        self._last_shown = -math.inf
        self._last_taken: float | None = None
        self._draw_cost_s = 0.0
        self._lock = threading.RLock()  # what is written is written whole
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> "TrainView":
        if self.quiet:
            return self
        if self._redraws:
            self._live = Live(get_renderable=self.panel, console=self.console, auto_refresh=False)
            self._live.start(refresh=True)
        self._beating = threading.Thread(target=self._beat, name="view", daemon=True)
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def wants_step(self) -> bool:
        """Whether a step that is not recorded is worth `step`: it waits for the loss, on a GPU for the step itself."""
        last = self._last_taken
        return not self.quiet and (last is None or time.monotonic() - last >= _BEAT_S)

    def step(
        self, *, step: int, tokens: int, elapsed_s: float, loss: float, steps: int, tokens_per_s: float | None
    ) -> None:
        """Take in a step between records; `loss` is the mean of the last `steps` steps."""
        progress = self.progress
        progress.step, progress.tokens, progress.elapsed_s = step, tokens, elapsed_s
        progress.take_step(loss if math.isfinite(loss) else None, steps, tokens_per_s)
        self._taken()

    def update(self, record: dict[str, Any], recent: tuple[float, int] | None = None) -> None:
        """Take in a record of any kind (hgrn2.train.metrics), evaluations and events at once; `recent` as in
        `RunProgress.take`."""
        self.progress.take(record, recent)
        if record["kind"] == "step":
            self._taken()
        else:
            self._last_taken = time.monotonic()
            if self._live is not None:
                self._draw()
            elif record["kind"] == "eval":
                self._say(_eval_line(self.progress))
            else:
                self._say(record["text"])

    def _taken(self) -> None:
        """The progress stands at a new step: without a terminal it may be time for a line."""
        self._last_taken = time.monotonic()
        if self._failure is not None:  # of writing, in the other thread
            raise self._failure
        self._line_if_due()

    def _beat(self) -> None:
        """Redraw, or say a line, by the clock, until the view ends."""
        while not self._ended.wait(max(_BEAT_S, self._draw_cost_s / _DRAW_SHARE)):
            try:
                self.beat()
            except Exception as error:  # such as a closed pipe: told where the trainer can be stopped by it
                self._failure = error
                return

    def beat(self) -> None:
        """What happens twice a second: the panel is redrawn, or a line said if the last one is long ago."""
        if self._live is not None:
            self._draw()
        else:
            self._line_if_due()

    def _line_if_due(self) -> None:
        with self._lock:
            if self._live is None and self.progress.step and time.monotonic() - self._last_shown >= _PLAIN_S:
                self._last_shown = time.monotonic()
                self._say(_step_line(self.progress, self._elapsed_s()))

    def _elapsed_s(self) -> float:
        """Training time now: a long step or measurement does not stop the clock."""
        if self._last_taken is None or self.progress.finished:
            return self.progress.elapsed_s
        return self.progress.elapsed_s + max(time.monotonic() - self._last_taken, 0.0)

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
        panel = self._live is not None
        self._stop()
        if not panel:
            self._say(_finish_line(self.progress, text or "finished"))

    def panel(self) -> Panel:
        """The whole figure, as wide as the console up to 100 columns, as high as it up to 28 rows."""
        progress, width = self.progress, min(self.console.width, _MAX_WIDTH)
        of = f" of {progress.total_steps:,}" if progress.total_steps and not progress.budget_s else ""
        low, high = _CHART_ROWS
        body = Group(
            _bar(progress, self._elapsed_s()),
            Text(),
            self._numbers(wide=width >= 80),
            Text(),
            chart(
                progress.history.points, progress.evaluations.points, width=width - 6,
                height=min(max(self.console.height - _OTHER_ROWS - len(_more(progress, wide=True)), low), high),
                ascii_only=self.console.options.ascii_only,
            ),
            Text(progress.last_event, style="dim", no_wrap=True, overflow="ellipsis"),
        )  # fmt: skip
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

    def _numbers(self, wide: bool) -> Table:
        """Two columns of names and values; narrow consoles get short names."""
        progress = self.progress
        lr = f"{progress.lr:.2e}" if progress.lr is not None else "–"
        table = Table.grid(expand=True, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, ratio=1)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, min_width=14)  # or the table shifts each time the speed changes its width
        speed, norm = rate(progress.tokens_per_s), number(progress.grad_norm, 2)
        table.add_row("train loss" if wide else "train", _train_loss(progress, wide), "speed", speed)
        held_out, best = _held_out(progress, wide), _best(progress)
        table.add_row("held-out loss" if wide else "held-out", held_out, "learning rate" if wide else "lr", lr)
        table.add_row("best held-out" if wide else "best", best, "gradient norm" if wide else "grad", norm)
        size = short(self.parameters) if self.parameters is not None else "–"
        table.add_row("tokens seen" if wide else "tokens", self._tokens(), "parameters" if wide else "size", size)
        for row in _more(progress, wide):
            table.add_row(*row)
        return table

    def _tokens(self) -> Text:
        seen = Text(short(self.progress.tokens))
        if self.epochs is not None:
            seen.append(f"  {self.epochs(self.progress.step):.2f} passes", style="dim")
        return seen

    def _draw(self) -> None:
        with self._lock:
            if self._live is not None:
                begin = time.monotonic()
                self._live.refresh()
                self._last_shown = time.monotonic()
                self._draw_cost_s = self._last_shown - begin

    def _stop(self) -> None:
        self._ended.set()
        if self._beating is not None:
            self._beating.join(timeout=5)
            self._beating = None
        with self._lock:
            if self._live is not None:
                self._live.stop()  # draws once more, so that the panel that stays is up to date
                self._live = None

    def _say(self, line: str) -> None:
        if not self.quiet:
            with self._lock:
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bar(progress: RunProgress, elapsed_s: float) -> RenderableType:
    left = progress.seconds_left(elapsed_s)
    times = f"{duration(elapsed_s)} elapsed"
    if left is not None and not progress.finished:
        times += f" · {duration(left)} left"
    row = Table.grid(expand=True, padding=(0, 2, 0, 0))
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    fraction = progress.fraction(elapsed_s)
    bar = ProgressBar(total=1.0, completed=fraction, complete_style="cyan", finished_style="green")
    row.add_row(bar, f"{fraction:.1%}", Text(times, style="dim"))
    return row


def _train_loss(progress: RunProgress, wide: bool) -> Text:
    if not progress.loss_is_finite:
        return Text("not finite", "bold red")
    text = Text(number(progress.loss), style="bold")
    if progress.loss is not None:
        text.append(" nats" if wide else "", style="not bold dim")
        text.append(f"  {_of_steps(progress) if wide else f'of {progress.loss_steps}'}", style="not bold dim")
    return text


def _of_steps(progress: RunProgress) -> str:
    return f"mean of {progress.loss_steps} steps" if progress.loss_steps > 1 else "of one step"


def _held_out(progress: RunProgress, wide: bool) -> Text:
    text, bits = Text(number(progress.eval_loss), style="bold"), progress.eval_bits_per_byte
    if wide:
        text.append(" nats" if progress.eval_loss is not None else "", style="not bold dim")
        text.append(f"  {bits:.3f} bits/byte" if bits is not None else "", style="not bold dim")
    if progress.eval_accuracy is not None:
        text.append(f"  {progress.eval_accuracy:.1%} right")
    return text


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _more(progress: RunProgress, wide: bool) -> list[list[str]]:
    """Rows that not every run has: memory and MFU, and further texts, two names and losses each."""
    memory = progress.memory_bytes
    rows = [["peak memory" if wide else "memory", readable(memory), "MFU", _share(progress.mfu)]] if memory else []
    shown = [(_fitted(name), number(loss)) for name, loss in list(progress.corpora.items())[:_CORPORA]]
    return rows + [[*shown[n], *(shown[n + 1] if n + 1 < len(shown) else ("", ""))] for n in range(0, len(shown), 2)]


def _fitted(name: str) -> str:
    return name if len(name) <= 13 else f"{name[:12]}…"


def _best(progress: RunProgress) -> Text:
    best = Text(number(progress.best_loss))
    if progress.best_loss is not None:
        best.append(f"  at step {progress.best_step:,}", style="dim")
    return best


def _step_line(progress: RunProgress, elapsed_s: float) -> str:
    of = f"/{progress.total_steps:,}" if progress.total_steps and not progress.budget_s else ""
    left = progress.seconds_left(elapsed_s)
    loss = f"{number(progress.loss)} ({_of_steps(progress)})" if progress.loss_is_finite else "not finite"
    parts = [
        f"step {progress.step:,}{of}",
        f"{progress.fraction(elapsed_s):.1%}",
        f"train loss {loss}",
        f"lr {progress.lr:.2e}" if progress.lr is not None else "",
        f"grad {number(progress.grad_norm, 2)}" if progress.grad_norm is not None else "",
        rate(progress.tokens_per_s),
        f"MFU {progress.mfu:.1%}" if progress.mfu is not None else "",
        readable(progress.memory_bytes) if progress.memory_bytes is not None else "",
        f"{duration(elapsed_s)} elapsed",
        f"{duration(left)} left" if left is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def _eval_line(progress: RunProgress) -> str:
    bits = progress.eval_bits_per_byte
    parts = [
        f"eval at step {progress.step:,}",
        f"held-out loss {number(progress.eval_loss, 4)}",
        f"{bits:.4f} bits/byte" if bits is not None else "",
        f"{progress.eval_accuracy:.2%} right" if progress.eval_accuracy is not None else "",
        f"best {number(progress.best_loss, 4)} at step {progress.best_step:,}"
        if progress.best_loss is not None
        else "",
        *(f"{name} {number(loss, 4)}" for name, loss in progress.corpora.items()),
    ]
    return "  ".join(part for part in parts if part)


def _finish_line(progress: RunProgress, text: str) -> str:
    line = f"{text}  step {progress.step:,}  {duration(progress.elapsed_s)} elapsed"
    if progress.best_loss is not None:
        line += f"  best held-out loss {number(progress.best_loss, 4)} at step {progress.best_step:,}"
    return line
