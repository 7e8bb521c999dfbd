"""What the runs of a comparison have in common, as frozen values; no torch here.

Every arm (a model and an optimiser) is trained at several learning rates on `sweep_tokens`, from the middle of those
asked for outwards and on by factors of two, until the best one is not at an edge. At that rate it is trained on
`final_tokens` with every seed. A seed decides the first weights and the order of batches: all arms see the same tokens
in the same order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hgrn2.settings import refuse, settings
from hgrn2.units import short

StudyName = Literal["compare", "expansion", "ablation", "length", "others", "structured", "stream", "monitor"]
SizeName = Literal["small", "45m", "125m", "350m"]
OptimizerName = Literal["adamw", "muon"]
Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "none", "blocks", "whole"]
APPLICATIONS: tuple[StudyName, ...] = ("stream", "monitor")
"""Uses of a state of constant size (`hgrn2.study.applications`)."""
GENERATED = "generated"
"""The source of the study monitor, whose data is made."""
EXTENSIONS = 4
"""Rates are extended at most so often below the first ones, and as often above them."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Tokens of a size: of a sequence, of a step, of the runs."""

    sequence_length: int
    batch_size: int
    sweep_tokens: int
    final_tokens: int
    warmup_tokens: int
    seeds: tuple[int, ...]
    held_out: int = 2**40
    """Held-out tokens of a measurement, at most."""


BUDGETS: dict[SizeName, Budget] = {
    "small": Budget(sequence_length=128, batch_size=8, sweep_tokens=24_576, final_tokens=49_152,
                    warmup_tokens=8_192, seeds=(0, 1), held_out=16_385),
    "45m": Budget(sequence_length=1024, batch_size=32, sweep_tokens=50_000_000, final_tokens=200_000_000,
                  warmup_tokens=3_276_800, seeds=(0, 1, 2)),
    "125m": Budget(sequence_length=1024, batch_size=64, sweep_tokens=100_000_000, final_tokens=500_000_000,
                   warmup_tokens=6_553_600, seeds=(0, 1)),
    "350m": Budget(sequence_length=2048, batch_size=64, sweep_tokens=250_000_000, final_tokens=2_000_000_000,
                   warmup_tokens=26_214_400, seeds=(0,)),
}  # fmt: skip

APPLICATION_BUDGETS: dict[SizeName, Budget] = {
    "small": Budget(sequence_length=64, batch_size=4, sweep_tokens=49_152, final_tokens=196_608,
                    warmup_tokens=4_096, seeds=(0,), held_out=16_385),
    "45m": Budget(sequence_length=256, batch_size=128, sweep_tokens=10_000_000, final_tokens=40_000_000,
                  warmup_tokens=1_000_000, seeds=(0, 1), held_out=262_145),
}  # fmt: skip
"""Of the applications, whose small models are smaller and whose data has less in it."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: a model and the optimiser that trains it."""

    subject: str
    """Its name in tables, such as hgrn2-conv."""
    architecture: str
    """Of `hgrn2.models.comparison`."""
    optimizer: OptimizerName = "adamw"
    set: tuple[str, ...] = ()
    """Settings of the model that are not the architecture's own, such as mixer.conv_width=4."""
    run: tuple[str, ...] = ()
    """Settings of its runs that are not those of the other arms, such as data.carry=true."""

    @property
    def changes(self) -> tuple[str, ...]:
        """Both."""
        return (*self.set, *self.run)

    @property
    def name(self) -> str:
        """Subject and, unless it is AdamW, optimiser."""
        return self.subject if self.optimizer == "adamw" else f"{self.subject}, {self.optimizer}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    arm: Arm
    lr: float
    seed: int
    tokens: int

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.arm.subject}-{self.arm.optimizer}-lr{self.lr:g}-s{self.seed}-{self.tokens}"

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.arm.name}, rate {self.lr:g}, seed {self.seed}, {short(self.tokens)} tokens"


@settings
class Study:
    """A comparison at one size."""

    study: StudyName = "compare"
    size: SizeName = "small"
    source: str = "shakespeare"
    """`shakespeare` (the embedded sample, characters) or the folder of a prepared corpus."""
    lrs: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    """Learning rates of the sweep; of Muon those of both of its parts."""
    seeds: tuple[int, ...] = ()
    """None named: those of the size."""
    sweep_tokens: int = 0
    """0: those of the size."""
    final_tokens: int = -1
    """-1: those of the size; 0: the sweep alone."""
    sequence_length: int = 0
    """0: that of the size; a step has as many tokens whatever it is."""
    reset_at_documents: bool = False
    """States, and what attention sees, start anew at each document inside a sequence, in every arm alike."""
    precision: Precision = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    compile: Compile = "auto"
    """What torch.compile builds; auto: the blocks on a GPU, nothing on a CPU. Numbers may differ by rounding."""
    set: tuple[str, ...] = ()
    """Settings of all runs, as in hgrn2 train lm: optim.weight_decay=0.01."""

    def __post_init__(self) -> None:
        refuse(not self.lrs, "--lrs needs at least one rate")
        for lr in self.lrs:
            refuse(lr <= 0, f"--lrs has {lr:g}; rates are positive")
        for name in ("lrs", "seeds"):
            refuse(len({*getattr(self, name)}) < len(getattr(self, name)), f"--{name}: a value is repeated")
        refuse(
            any(seed < 0 for seed in self.seeds), f"--seeds has {min(self.seeds, default=0)}; a seed is not negative"
        )
        refuse(self.sweep_tokens < 0, f"--sweep-tokens is {self.sweep_tokens}; it must not be negative")
        refuse(self.final_tokens < -1, f"--final-tokens is {self.final_tokens}; it must not be negative")
        made = self.study == "monitor"
        refuse(made != (self.source == GENERATED), f"--data is {self.source}: the data of monitor, and of no other "
                                                   f"study, is {GENERATED}")  # fmt: skip
        step, length = self.tokens_per_step, self.length
        refuse(length < 1, f"--sequence-length is {length}; it must be at least 1")
        refuse(step % length != 0, f"--sequence-length {length} does not divide the {step:,} tokens of a step")

    @property
    def budget(self) -> Budget:
        """Of the size."""
        own = APPLICATION_BUDGETS if self.study in APPLICATIONS else BUDGETS
        return own.get(self.size, BUDGETS[self.size])

    @property
    def length(self) -> int:
        """T; in the study of lengths a quarter of the size's, so that documents of 16 T tokens can be found."""
        usual = self.budget.sequence_length // (4 if self.study == "length" else 1)
        return self.sequence_length or usual

    @property
    def tokens_per_step(self) -> int:
        """B·T."""
        return self.budget.batch_size * self.budget.sequence_length

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The first one is that of the sweep."""
        return self.seeds or self.budget.seeds

    @property
    def sweep(self) -> int:
        """Tokens of a run of the sweep, in whole steps."""
        return self._whole(self.sweep_tokens or self.budget.sweep_tokens)

    @property
    def final(self) -> int:
        """Tokens of the runs at the best rate, in whole steps; 0: none."""
        return self._whole(self.budget.final_tokens if self.final_tokens < 0 else self.final_tokens)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up, at most a tenth of the sweep's."""
        return max(1, min(self.budget.warmup_tokens, self.sweep // 10) // self.tokens_per_step)

    def _whole(self, tokens: int) -> int:
        return math.ceil(tokens / self.tokens_per_step) * self.tokens_per_step


def next_rates(values: Mapping[float, float], rates: Sequence[float]) -> tuple[float, ...]:
    """Rates of a sweep that are to be run next: the two in the middle of those asked for, then one more at the edge
    where the best one is, until it is at no edge; none: the sweep is complete.

    Args:
        values: held-out loss by rate, of what was run so far; ties go to the lower rate.
        rates: those asked for, beyond which it goes on by factors of two; a single one is no sweep.
    """
    asked = sorted(rates)
    if len(asked) == 1:
        return () if asked[0] in values else (asked[0],)
    middle = asked[(len(asked) - 1) // 2 : len(asked) // 2 + 1] if len(asked) > 2 else asked
    least, most = min([*values, *middle]), max([*values, *middle])
    if gaps := tuple(rate for rate in asked if least <= rate <= most and rate not in values):
        return gaps
    best = best_rate(values)
    if best == least:
        lower = [rate for rate in asked if rate < least]
        return (max(lower, default=least / 2),) if least > asked[0] / 2**EXTENSIONS else ()
    if best == most:
        higher = [rate for rate in asked if rate > most]
        return (min(higher, default=most * 2),) if most < asked[-1] * 2**EXTENSIONS else ()
    return ()


def best_rate(values: Mapping[float, float]) -> float:
    """The rate with the lowest loss."""
    return min(sorted(values), key=lambda rate: values[rate])


def bracketed(values: Mapping[float, float]) -> bool:
    """Whether the best rate has a worse one on either side."""
    return min(values) < best_rate(values) < max(values)


def next_cases(study: Study, arm: Arm, losses: Mapping[tuple[float, int, int], float]) -> list[Case]:
    """What is to be run next of an arm: rates of the sweep, then at the best one every seed; none: it is complete.
    A single rate is not swept.

    Args:
        losses: by (rate, seed, tokens), of the arm's finished runs.
    """
    first = study.all_seeds[0]
    values = {lr: loss for (lr, seed, tokens), loss in losses.items() if (seed, tokens) == (first, study.sweep)}
    rates = next_rates(values, study.lrs)
    alone = len(study.lrs) == 1 and study.final > 0
    if rates and not alone:
        return [Case(arm=arm, lr=lr, seed=first, tokens=study.sweep) for lr in rates]
    if not study.final:
        return []
    case = Case(arm=arm, lr=study.lrs[0] if alone else best_rate(values), seed=first, tokens=study.final)
    cases = [replace(case, seed=seed) for seed in study.all_seeds]
    return [case for case in cases if (case.lr, case.seed, case.tokens) not in losses]


def common(study: Study, corpus: str, precision: str) -> dict[str, Any]:
    """What the rows of a study must share to be compared, as plain values.

    Args:
        corpus: identity of the training text.
        precision: float32 or bfloat16.
    """
    return {
        "study": study.study, "size": study.size, "corpus": corpus, "sequence": study.length,
        "batch": study.tokens_per_step // study.length, "warmup": study.warmup_steps,
        "documents": "reset" if study.reset_at_documents else "packed", "precision": precision, "set": list(study.set),
    }  # fmt: skip
