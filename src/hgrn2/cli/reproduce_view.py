"""What a person sees of a plan: the plan itself, runs as they start and end, and the table they come to."""

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from hgrn2 import console

if TYPE_CHECKING:
    from hgrn2.reproduce.one_run import Job
    from hgrn2.reproduce.running import Outcome
    from hgrn2.reproduce.whole import Planned
    from hgrn2.rows import Row

PLAIN_S = 60.0  # without a terminal: seconds between lines about runs that are under way


class PlanView:
    """A line when a run starts and one when it ends; in a terminal also a table of those that run at once."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.console, self.quiet = Console(quiet=quiet), quiet
        self.total, self.begun, self.begin = total, 0, dict[str, float]()
        self._live: Live | None = None
        self._last = time.monotonic()

    def __enter__(self) -> "PlanView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: "Job") -> None:
        self.begun += 1
        self.begin[job.spec.name] = time.monotonic()
        self._print(f"[{self.begun}/{self.total}] {job.spec.label}")

    def ended(self, outcome: "Outcome") -> None:
        if outcome.state == "skipped":
            self.begun += 1
        parts = [f"{outcome.job.spec.label}: {outcome.state}"]
        if outcome.row is not None:
            parts.append(f"{outcome.row.value:.2%} right")
        seconds = time.monotonic() - self.begin.pop(outcome.job.spec.name, time.monotonic())
        if outcome.state in ("finished", "interrupted"):
            parts.append(f"after {seconds:.0f} s")
        self._print(", ".join(parts) + (f": {outcome.text}" if outcome.text else ""))

    def going_on(self, jobs: "Sequence[Job]") -> None:
        from hgrn2.reproduce.running import latest

        if self.quiet:
            return
        told = [(job.spec.label, *latest(job)) for job in jobs]
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(_running(told), refresh=True)
        elif time.monotonic() - self._last > PLAIN_S:
            self._last = time.monotonic()
            for cells in told:
                self._print("   ".join(cells))

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


def _running(told: list[tuple[str, ...]]) -> console.Columns:
    return console.Columns(("under way", "step", "loss", "accuracy, so far"), told, frame=False)


def print_plan(plan: "Sequence[Planned]") -> None:
    """A dry run."""
    rows = []
    groups: dict[tuple[str, str, int | None], list[Planned]] = {}
    for one in plan:
        groups.setdefault((one.task, one.model, one.n), []).append(one)
    for (task, model, n), group in groups.items():
        one, seeds = group[0], ",".join(str(one.seed) for one in group)
        budget = f"{one.minutes:g} min" if one.minutes else "–"
        counts = Counter(one.state for one in group)
        state = ", ".join(name if len(counts) == 1 else f"{count} {name}" for name, count in counts.items())
        numbers = (f"{one.parameters:,}", f"{one.steps:,}", f"{one.batch:,}", budget)
        rows.append((task, model, str(n or "–"), seeds, *numbers, state))
    head = ("task", "model", "n", "seeds", "parameters", "steps", "batch", "budget", "state")
    console.show(console.Columns(head, rows, text=(0, 1, 8), title=f"{len(plan)} runs", frame=False))
    for task in dict.fromkeys(one.task for one in plan):
        data = next(one.data for one in plan if one.task == task)
        console.show(f"{task}: {data}")


def print_lines(rows: "Sequence[Row]", table: str) -> None:
    """The table, as far as it has rows."""
    from hgrn2.reproduce.lines import HEAD, TITLES, lines_of

    lines = lines_of(rows, table, all_of_it=False)
    if not lines:
        return
    shown = [place for place, name in enumerate(HEAD) if name != "data"]
    head, text = [HEAD[place] for place in shown], ("task", "model", "minutes per run")
    cells = [[line.cells[place] for place in shown] for line in lines]
    places = [place for place, name in enumerate(head) if name in text]
    console.show(console.Columns(head, cells, text=places, title=f"{TITLES[table]}: per cent right on the test set"))
    for line in lines:
        if line.published and line.rows:
            data = line.cells[HEAD.index("data")]
            console.show(f"{line.task}: {data}")
