"""What is to be run of a study, arm by arm, before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from hgrn2.models.count import parameters
from hgrn2.rows import Row
from hgrn2.study.arms import first_case, run_of
from hgrn2.study.protocol import Arm, Study, next_cases
from hgrn2.study.record import losses
from hgrn2.study.running import speed
from hgrn2.study.training import Place
from hgrn2.units import short

LEAST = 3
"""Rates of a sweep, at the least: the best one and one on either side."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One line of a plan."""

    model: str
    optimizer: str
    parameters: int
    sweep_runs: int
    """At the least: a sweep goes on until the best rate is at no edge."""
    final_runs: int
    done: int
    runs_left: int
    tokens_left: int
    minutes_left: float | None
    """By the speed of earlier runs of the arm; None where there are none."""

    @property
    def cells(self) -> tuple[str, ...]:
        """For a table."""
        minutes = "–" if self.minutes_left is None else f"{self.minutes_left:.1f}"
        return (self.model, self.optimizer, short(self.parameters), str(self.sweep_runs), str(self.final_runs),
                str(self.done), str(self.runs_left), short(self.tokens_left), minutes)  # fmt: skip


def plan(study: Study, arms: Sequence[Arm], place: Place, rows: Sequence[Row]) -> list[Planned]:
    """A line an arm; nothing is trained."""
    return [_planned(study, arm, place, rows) for arm in arms]


def _planned(study: Study, arm: Arm, place: Place, rows: Sequence[Row]) -> Planned:
    known = losses(rows, place.common(study), arm)
    swept = {lr: loss for (lr, seed, tokens), loss in known.items()
             if (seed, tokens) == (study.all_seeds[0], study.sweep)}  # fmt: skip
    left = next_cases(study, arm, known)
    finals = len(study.all_seeds) if study.final else 0
    sweeping = bool(left) and len(study.lrs) > 1 and left[0].lr not in swept
    # While rates are left the best one, whose seeds come last, is not known; the sweep's own run may be one of them.
    rates_left = max(len(left), LEAST - len(swept)) if sweeping else 0
    runs = [study.sweep] * rates_left + [study.final] * (finals - (study.final == study.sweep))
    runs = runs if sweeping else [case.tokens for case in left]
    rate = speed([row for row in rows if row.subject == arm.subject], place.device.type)
    on_gpu = place.device.type == "cuda"
    run = run_of(study, first_case(study, arm), vocab_size=place.vocab_size, precision=place.precision, on_gpu=on_gpu)
    return Planned(
        model=arm.subject, optimizer=arm.optimizer,
        parameters=parameters(run.model).total,
        sweep_runs=len(swept) + rates_left, final_runs=finals, done=len(known),
        runs_left=len(runs), tokens_left=sum(runs), minutes_left=sum(runs) / rate / 60 if rate else None,
    )  # fmt: skip
