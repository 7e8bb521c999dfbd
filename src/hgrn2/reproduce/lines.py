"""The rows of `results/reproduce.jsonl` grouped for people: a line is one model on one task, with all its seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hgrn2.reproduce.plan import MODELS, TASKS
from hgrn2.reproduce.published import RESULTS, Published
from hgrn2.rows import Row

TITLES = {"lra": "Long Range Arena", "image": "Images", "mqar": "Recall (MQAR)"}
HEAD = ("task", "model", "published", "ours", "seeds", "data", "minutes per run")


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
        return self.heading + (f", {self.size}" if self.size != "full" else "")

    @property
    def ours(self) -> str:
        """Mean over seeds and their standard deviation, in per cent."""
        return _spread([100 * row.value for row in self.rows]) if self.rows else "not run"

    @property
    def ours_with_seeds(self) -> str:
        """`ours`, with the number of seeds where it is not one."""
        return self.ours + (f" ({len(self.rows)} seeds)" if len(self.rows) > 1 else "")

    @property
    def heading(self) -> str:
        """The task and what was measured of it."""
        return ", ".join(filter(None, (self.task, self.rows[-1].details.get("measured") if self.rows else None)))

    @property
    def devices(self) -> str:
        """What the runs ran on."""
        return " · ".join(dict.fromkeys(_device(row) for row in self.rows))

    @property
    def cells(self) -> tuple[str, ...]:
        """As in `HEAD`."""
        published = f"{self.published.per_cent:.2f}" if self.published else "–"
        if not self.rows:
            return (self.task_name, self.name, published, self.ours, "–", "–", "–")
        seeds = ", ".join(str(row.case["seed"]) for row in self.rows)
        minutes = statistics.fmean(row.details["device_minutes"] for row in self.rows)
        data = " · ".join(dict.fromkeys(str(row.details.get("data") or "–") for row in self.rows))
        return (self.task_name, self.name, published, self.ours, seeds, data, f"{minutes:.1f}, {self.devices}")


def lines_of(rows: Iterable[Row], table: str, *, all_of_it: bool = True) -> list[Line]:
    """The lines of a table: those with rows and, but for the small size, also those that were published or planned."""
    groups: dict[tuple[str, str, str, int | None], dict[int, Row]] = {}
    if all_of_it and table != "mqar":
        groups = {(size, task, model, None): {} for size in ("full", "fast") for task in TASKS[table]
                  for model in MODELS[table]}  # fmt: skip
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


def _order(line: Line) -> tuple[int, int, int, int]:
    tasks = [task for tasks in TASKS.values() for task in tasks]
    models = list(dict.fromkeys(model for models in MODELS.values() for model in models))
    place = models.index(line.model) if line.model in models else len(models)
    return ("full", "fast", "small").index(line.size), tasks.index(line.task), place, line.n or 0


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.2f}" if len(values) < 2 else f"{mean:.2f} ± {statistics.stdev(values):.2f}"


def _device(row: Row) -> str:
    machine = row.machine
    if row.details.get("device") == "cuda":
        return str(machine.get("gpu") or "a GPU")
    return f"{machine.get('cpu') or 'a CPU'}, threads: {machine.get('threads')}"
