"""Which runs make a table, as frozen values; no torch here."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from hgrn2.errors import unknown
from hgrn2.reproduce.recall_settings import MQARStudy
from hgrn2.settings import refuse, settings, with_overrides
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.classify.recipes import recipe
from hgrn2.tasks.mqar import recipes as mqar
from hgrn2.tasks.mqar.config import MQARRun

TableName = Literal["lra", "image", "mqar"]
Size = Literal["full", "fast", "small"]
Run = ClassifyRun | MQARRun
MODELS: dict[str, tuple[str, ...]] = {
    "lra": ("hgrn2", "hgrn1", "transformer"),
    "image": ("hgrn2", "hgrn1", "transformer"),
    "mqar": ("hgrn2", "hgrn1", "gla", "attention"),
}
"""Those that are run where none is named; recall knows more of them."""
TASKS: dict[str, tuple[str, ...]] = {
    "lra": ("listops", "text", "retrieval", "image", "pathfinder", "pathx"),
    "image": ("cifar10", "fashion-mnist", "imagenet"),
    "mqar": ("mqar",),
}
LONG = ("pathx", "imagenet")
"""Too much for a CPU in any form: run in the small table only where they are named."""
SEEDS = {"listops": (0, 1, 2), "mqar": (0, 1, 2)}
"""Of the tasks whose runs are short; one seed elsewhere."""
RECALL: dict[str, tuple[str, tuple[int, ...]]] = {
    "full": ("zoology", (16, 64, 128)),
    "fast": ("h100", (16, 32, 64, 128)),
    "small": ("small", (4, 16, 64)),
}
"""By size of the table: the recipe of recall, and the head sizes that are compared."""
SMALL_RECALL = ("hgrn2-conv", "gla-conv", "attention-conv")
"""What learns in the one layer of the small form."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: a task, a model and a seed; in recall also the size of the state."""

    table: str
    task: str
    model: str
    seed: int
    size: str = "full"
    n: int | None = None
    """Head size, where a table has several of them."""

    @property
    def name(self) -> str:
        """Its folder."""
        parts = [self.task, self.model, f"n{self.n}" if self.n else "", self.size if self.size != "full" else ""]
        return "-".join(filter(None, (*parts, f"s{self.seed}")))

    @property
    def label(self) -> str:
        """For people."""
        state = f", n {self.n}" if self.n else ""
        return f"{self.task}, {self.model}{state}, seed {self.seed}"


@settings
class Plan:
    """A table, or part of it."""

    table: TableName
    tasks: tuple[str, ...] = ()
    """None named: all of the table."""
    models: tuple[str, ...] = ()
    """None named: those of `MODELS`."""
    seeds: tuple[int, ...] = ()
    """None named: those of `SEEDS`."""
    size: Size = "full"
    minutes: float = 0.0
    """Budget of each run; 0: the steps of its recipe."""
    set: tuple[str, ...] = ()
    """Settings of all runs, as in `hgrn2 train`."""

    def __post_init__(self) -> None:
        refuse(self.minutes < 0, f"--minutes is {self.minutes}; it must not be negative")
        for task in self.tasks:
            _known("task", task, TASKS[self.table])
        for model in self.models:
            _known("model", model, mqar.VARIANTS if self.table == "mqar" else MODELS[self.table])
        for option, values in (("--tasks", self.tasks), ("--models", self.models), ("--seeds", self.seeds)):
            refuse(len(set(values)) < len(values), f"{option}: a value is repeated")
        refuse(any(seed < 0 for seed in self.seeds), f"--seeds has {min(self.seeds, default=0)}; it must be at least 0")

    def specs(self) -> list[RunSpec]:
        """Every run: task by task, the first seed of all models before the second."""
        return [
            spec
            for task in self.tasks or self._usual()
            for seed in self.seeds or SEEDS.get(task, (0,))
            for model in self.models or self._usual_models()
            for spec in self._sizes(task, model, seed)
        ]

    def run_of(self, spec: RunSpec, data: str = "") -> Run:
        """The whole settings of a run; `data` is the folder of its examples."""
        if spec.task == "mqar":
            run: Run = _recall_run(self._study(spec.model, spec.seed, spec.n))
        else:
            # Of images the Transformer is DeiT.
            model = "deit" if (self.table, spec.model) == ("image", "transformer") else spec.model
            run = recipe(spec.task, model, self.size)
            run = replace(run, data=replace(run.data, folder=data), train=replace(run.train, seed=spec.seed))
            run = with_overrides(run, self.set)
        return replace(run, train=replace(run.train, budget_s=60 * self.minutes)) if self.minutes else run

    def _usual(self) -> list[str]:
        return [task for task in TASKS[self.table] if self.size != "small" or task not in LONG]

    def _usual_models(self) -> tuple[str, ...]:
        return SMALL_RECALL if (self.table, self.size) == ("mqar", "small") else MODELS[self.table]

    def _sizes(self, task: str, model: str, seed: int) -> list[RunSpec]:
        spec = RunSpec(table=self.table, task=task, model=model, seed=seed, size=self.size)
        if task != "mqar":
            return [spec]
        return [replace(spec, n=one.head_size) for one in self._study(model, seed, None).specs()]

    def _study(self, model: str, seed: int, n: int | None) -> MQARStudy:
        """The comparison of recall for one model, in all its sizes or in one."""
        name, sizes = RECALL[self.size]
        base = mqar.changed(mqar.recipe(name), assignments=self.set)
        return MQARStudy(
            recipe=name, models=(model,), head_sizes=sizes if n is None else (n,), widths=(base.model.width,),
            lrs=(base.optim.lr,), seeds=(seed,), set=self.set,
        )  # fmt: skip


def _recall_run(study: MQARStudy) -> MQARRun:
    (spec,) = study.specs()
    return study.run_of(spec)


def _known(noun: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise unknown(f"{noun} of this table", name, known)
