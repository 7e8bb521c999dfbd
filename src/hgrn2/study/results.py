"""What the rows of studies come to: groups that may be compared, and in them every arm at its best rate."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hgrn2.rows import Row
from hgrn2.study.arms import OURS
from hgrn2.study.protocol import OptimizerName, best_rate, bracketed
from hgrn2.study.record import BENCH, common_of

CLEAR = 2.0
"""A difference of fewer standard deviations of a difference between two seeds is no difference here."""


@dataclass(frozen=True)
class Entry:
    """An arm on one number of tokens: its rates and seeds."""

    subject: str
    optimizer: OptimizerName
    tokens: int
    rows: tuple[Row, ...]
    """One a rate and seed, the newest."""

    @property
    def name(self) -> str:
        """For tables."""
        return self.subject if self.optimizer == "adamw" else f"{self.subject}, {self.optimizer}"

    @cached_property
    def by_rate(self) -> dict[float, float]:
        """Loss of the first seed by rate; of rates that were run with other seeds alone their mean."""
        found: dict[float, dict[int, float]] = {}
        for row in self.rows:
            found.setdefault(row.case["lr"], {})[row.case["seed"]] = row.value
        first = min(row.case["seed"] for row in self.rows)
        return {lr: seeds.get(first, statistics.fmean(seeds.values())) for lr, seeds in sorted(found.items())}

    @property
    def lr(self) -> float:
        """The best rate."""
        return best_rate(self.by_rate)

    @property
    def best(self) -> tuple[Row, ...]:
        """The runs at the best rate, by seed."""
        return tuple(sorted((row for row in self.rows if row.case["lr"] == self.lr), key=lambda row: row.case["seed"]))

    @property
    def loss(self) -> float:
        """Mean over the seeds at the best rate."""
        return statistics.fmean(row.value for row in self.best)

    @property
    def spread(self) -> float | None:
        """Standard deviation over them; None for one."""
        values = [row.value for row in self.best]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def shown(self) -> str:
        """Loss and spread."""
        told = f"{self.loss:.4f}"
        return told if self.spread is None else f"{told} ± {self.spread:.4f}"

    @property
    def changes(self) -> tuple[str, ...]:
        """Settings of the model that are not the architecture's own."""
        return tuple(self.best[0].case["arm"])


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but arm, rate and seed."""

    common: dict[str, Any]
    tokens: int
    entries: tuple[Entry, ...]
    """The lowest loss first."""
    sweep: tuple[Entry, ...]
    """The same arms on as many tokens as they were swept on."""

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds, over all arms that have several; None where none has."""
        squares = [(len(one.best) - 1, one.spread**2) for one in self.entries if one.spread is not None]
        freedom = sum(count for count, _ in squares)
        return math.sqrt(sum(count * square for count, square in squares) / freedom) if freedom else None

    def clear(self, one: Entry, other: Entry) -> bool | None:
        """Whether the means of two arms differ by more than seeds do; None where the seeds' spread is not known."""
        if self.spread is None:
            return None
        deviation = self.spread * math.sqrt(1 / len(one.best) + 1 / len(other.best))
        return abs(one.loss - other.loss) > CLEAR * deviation

    def find(self, subject: str, optimizer: OptimizerName = "adamw") -> Entry | None:
        """An arm, where it has runs."""
        return next((one for one in self.entries if (one.subject, one.optimizer) == (subject, optimizer)), None)

    def published(self) -> tuple[Entry, ...]:
        """The architectures in the form in which they were published, by AdamW; stacks of two kinds left out."""
        plain = [one for one in self.entries if one.optimizer == "adamw" and not one.changes]
        return tuple(one for one in plain if not one.subject.startswith(f"{OURS}-"))

    @property
    def data(self) -> str:
        """What was trained on."""
        return str(self.entries[0].rows[0].details.get("data", ""))

    def rates(self, one: Entry) -> dict[float, float]:
        """Loss by rate of an arm's sweep."""
        swept = {(entry.subject, entry.optimizer): entry for entry in self.sweep}
        return swept.get((one.subject, one.optimizer), one).by_rate

    @property
    def unfinished(self) -> tuple[Entry, ...]:
        """Published forms whose best rate is not between two others."""
        return tuple(one for one in self.published() if not bracketed(self.rates(one)))

    @property
    def open_sweeps(self) -> tuple[Entry, ...]:
        """Arms whose best rate stands at an edge of their rates."""
        return tuple(one for one in self.sweep if len(one.by_rate) > 1 and not bracketed(one.by_rate))


def groups(rows: Sequence[Row], study: str) -> list[Group]:
    """The groups of a study; large models and long runs first. Of runs made twice the newest counts."""
    newest: dict[str, dict[tuple[Any, ...], Row]] = {}
    commons: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.bench == BENCH and row.case["study"] == study:
            key = repr(sorted(common_of(row).items()))
            commons[key] = common_of(row)
            case = row.case
            which = (row.subject, case["optimizer"], tuple(case["arm"]), case["tokens"], case["lr"], case["seed"])
            newest.setdefault(key, {})[which] = row
    found = [group for key, by_run in newest.items() for group in _by_tokens(commons[key], list(by_run.values()))]
    return sorted(found, key=lambda group: (-_parameters(group), -group.tokens))


def _by_tokens(common: dict[str, Any], rows: list[Row]) -> list[Group]:
    lengths = sorted({row.case["tokens"] for row in rows})
    entries = {tokens: _entries([row for row in rows if row.case["tokens"] == tokens], tokens) for tokens in lengths}
    swept = {(one.subject, one.optimizer): one for tokens in lengths for one in entries[tokens] if len(one.by_rate) > 1}
    return [
        Group(common, tokens, entries[tokens], tuple(
            swept[one.subject, one.optimizer] for one in entries[tokens] if (one.subject, one.optimizer) in swept
        ))
        for tokens in lengths
    ]  # fmt: skip


def _entries(rows: list[Row], tokens: int) -> tuple[Entry, ...]:
    arms: dict[tuple[str, OptimizerName], list[Row]] = {}
    for row in rows:
        arms.setdefault((row.subject, row.case["optimizer"]), []).append(row)
    found = [Entry(subject, optimizer, tokens, tuple(own)) for (subject, optimizer), own in arms.items()]
    return tuple(sorted(found, key=lambda one: one.loss))


def _parameters(group: Group) -> int:
    return max(row.details.get("parameters", 0) for one in group.entries for row in one.rows)
