"""The rows of `results/reproduce.jsonl` as tables: Markdown between two marks of a page, and lines for a terminal."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hgrn2.bench.record import Row
from hgrn2.errors import UserError
from hgrn2.files import write_text
from hgrn2.reproduce.plan import MODELS, TASKS
from hgrn2.reproduce.published import CLAIM, RESULTS, Published
from hgrn2.settings import refuse

BEGIN = "<!-- made by `hgrn2 reproduce table` from results/reproduce.jsonl; do not edit -->"
END = "<!-- end of what `hgrn2 reproduce table` makes -->"
TITLES = {"lra": "Long Range Arena", "image": "Images", "mqar": "Recall (MQAR)"}
HEAD = ("task", "model", "published", "ours", "seeds", "data", "minutes a run")


@dataclass(frozen=True)
class Line:
    """One model on one task: all seeds of it."""

    task: str
    model: str
    size: str
    n: int | None
    published: Published | None
    rows: tuple[Row, ...]
    """The newest one of each seed that was set as the newest of all; none where it was not run."""

    @property
    def name(self) -> str:
        """Model and, where it was varied, n."""
        return self.model + (f", n {self.n}" if self.n else "")

    @property
    def task_name(self) -> str:
        """With what was measured, and whether it is the small form."""
        measured = self.rows[-1].details.get("measured") if self.rows else None
        return ", ".join(filter(None, (self.task, measured, self.size if self.size != "full" else "")))

    @property
    def ours(self) -> str:
        """Mean over seeds and their standard deviation, in per cent."""
        return _spread([100 * row.value for row in self.rows]) if self.rows else "not run"

    @property
    def cells(self) -> tuple[str, ...]:
        """As in `HEAD`."""
        published = f"{self.published.per_cent:.2f}" if self.published else "–"
        if not self.rows:
            return (self.task_name, self.name, published, self.ours, "–", "–", "–")
        seeds = ", ".join(str(row.case["seed"]) for row in self.rows)
        minutes = statistics.fmean(row.details["device_minutes"] for row in self.rows)
        data = " · ".join(dict.fromkeys(str(row.details.get("data") or "–") for row in self.rows))
        cost = f"{minutes:.1f}, {' · '.join(dict.fromkeys(_device(row) for row in self.rows))}"
        return (self.task_name, self.name, published, self.ours, seeds, data, cost)


def lines_of(rows: Iterable[Row], table: str, *, all_of_it: bool = True) -> list[Line]:
    """The lines of a table: those with rows and, of the full size, also those that were published or planned."""
    groups: dict[tuple[str, str, str, int | None], dict[int, Row]] = {}
    if all_of_it and table != "mqar":
        groups = {("full", task, model, None): {} for task in TASKS[table] for model in MODELS[table]}
    for row in rows:
        if row.bench == "reproduce" and row.case.get("table") == table:
            key = (row.case["size"], row.case["task"], row.subject, row.case["n"])
            by_seed = groups.setdefault(key, {})
            by_seed.pop(row.case["seed"], None)  # so that the newest of all comes last
            by_seed[row.case["seed"]] = row
    found = []
    for (size, task, model, n), all_seeds in groups.items():
        by_seed = _alike(all_seeds)
        published = RESULTS.get(task, {}).get(model) if size != "small" else None
        ordered = tuple(by_seed[seed] for seed in sorted(by_seed))
        found.append(Line(task, model, size, n, published, ordered))
    return sorted(found, key=_order)


def _alike(by_seed: dict[int, Row]) -> dict[int, Row]:
    """Those that were set as the newest: a mean over others would be one of nothing."""
    if not by_seed:
        return by_seed
    newest = _setting(list(by_seed.values())[-1])
    return {seed: row for seed, row in by_seed.items() if _setting(row) == newest}


def _setting(row: Row) -> tuple[str, ...]:
    """What was set otherwise; the epochs, which a clock decides, left out."""
    told = [str(row.details.get(name) or "") for name in ("differs", "changed")]
    return tuple(part for text in told for part in text.split(", ") if not part.startswith("epochs "))


def block(rows: Sequence[Row]) -> str:
    """All tables as Markdown, with the marks around them."""
    parts = [BEGIN]
    for table, title in TITLES.items():
        lines = lines_of(rows, table)
        parts.append(f"### {title}")
        if table == "mqar":
            parts.append(f"Published: {CLAIM}.")
        parts.append(_markdown(lines) if lines else "Not run.")
        parts += _notes(lines)
    return "\n\n".join([*parts, END])


def update(page: Path, rows: Sequence[Row]) -> bool:
    """Put the tables between the marks of a page; returns whether that changed it.

    Raises:
        UserError: no such file, or no marks in it.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{page} does not exist; --page names the file that the tables go into") from None
    except UnicodeDecodeError:
        raise UserError(f"{page} is not UTF-8 text") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    refuse(not begin or not end, f"{page} has no place for the tables: lines with {BEGIN} and {END}")
    made = before + block(rows) + after
    if made != text:
        write_text(page, made)
    return made != text


def _order(line: Line) -> tuple[int, int, int, int]:
    tasks = [task for tasks in TASKS.values() for task in tasks]
    models = list(dict.fromkeys(model for models in MODELS.values() for model in models))
    place = models.index(line.model) if line.model in models else len(models)
    return ("full", "fast", "small").index(line.size), tasks.index(line.task), place, line.n or 0


def _markdown(lines: Sequence[Line]) -> str:
    rule = ["---" if name in ("task", "model", "data") else "---:" for name in HEAD]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
                     for cells in (HEAD, rule, *(line.cells for line in lines)))  # fmt: skip


def _notes(lines: Sequence[Line]) -> list[str]:
    """Sources, and what was not set as published."""
    found = []
    sources = dict.fromkeys(line.published.source for line in lines if line.published)
    if sources:
        found.append(f"Published: {'; '.join(sources)}.")
    differing: dict[tuple[str, str], dict[str, None]] = {}  # models by task and text: those set alike share a line
    for line in lines:
        for row in line.rows:
            differing.setdefault((line.task_name, _settings(row)), {})[line.name] = None
    told = [f"- {task}, {'; '.join(names)}: {text}" for (task, text), names in differing.items() if text]
    if told:
        found.append("Settings that are not the published ones, which stand in brackets:\n\n" + "\n".join(told))
    return found


def _settings(row: Row) -> str:
    """How a run was set otherwise, and how it ended."""
    details = row.details
    parts = [details.get("differs") or ""]
    if details.get("changed"):
        parts.append(f"other than the recipe: {details['changed']}")
    if details.get("by_the_clock_s"):
        parts.append(f"ended by the clock after {details['by_the_clock_s'] / 60:.3g} minutes")
    if details.get("at_once", 1) > 1:
        parts.append(f"{details['at_once']} runs shared the device, minutes are a run's share")
    return "; ".join(filter(None, parts))


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.2f}" if len(values) < 2 else f"{mean:.2f} ± {statistics.stdev(values):.2f}"


def _device(row: Row) -> str:
    machine = row.machine
    if row.details.get("device") == "cuda":
        return str(machine.get("gpu") or "a GPU")
    return f"{machine.get('cpu') or 'a CPU'}, threads: {machine.get('threads')}"
