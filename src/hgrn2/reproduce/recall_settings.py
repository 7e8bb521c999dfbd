"""What `hgrn2 study mqar` compares, as frozen values; no torch here."""

from dataclasses import dataclass, replace
from itertools import product

from hgrn2.settings import refuse, settings
from hgrn2.tasks.mqar.config import MQARRun, Segment
from hgrn2.tasks.mqar.recipes import changed, recipe, variant


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of the sweep."""

    model: str
    width: int
    head_size: int | None
    """n; None where the state does not depend on it."""
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        size = "" if self.head_size is None else f"-n{self.head_size}"
        return f"{self.model}-d{self.width}{size}-lr{self.lr:g}-s{self.seed}"

    @property
    def label(self) -> str:
        """For people, without learning rate and seed."""
        return f"{self.model}, d {self.width}" + ("" if self.head_size is None else f", n {self.head_size}")


@settings
class MQARStudy:
    """Every model in every size that it has, at every learning rate and seed."""

    recipe: str = "small"
    """small (a CPU), zoology (the published sets, a GPU) or h100 (that task in minutes)."""
    models: tuple[str, ...] = ("hgrn2-conv",)
    """hgrn2, hgrn2-conv, hgrn1, gla, gla-conv, attention, attention-conv."""
    head_sizes: tuple[int, ...] = (4, 16, 64)
    """n of the models that have it; sizes that do not divide a width are left out there."""
    widths: tuple[int, ...] = (64,)
    """D."""
    lrs: tuple[float, ...] = (2e-2,)
    """Peak learning rates; the best one of a model and size counts."""
    seeds: tuple[int, ...] = (0,)
    """Of weights and of the order of batches."""
    set: tuple[str, ...] = ()
    """Any setting of all runs, such as train.steps=500 data.test=32x8x100."""

    def __post_init__(self) -> None:
        for name in ("models", "head_sizes", "widths", "lrs", "seeds"):
            refuse(not getattr(self, name), f"--{name.replace('_', '-')} needs at least one value")
        for name in ("head_sizes", "widths", "lrs"):
            for value in getattr(self, name):
                refuse(value <= 0, f"--{name.replace('_', '-')} has {value}; give positive numbers")
        refuse(min(self.seeds) < 0, f"--seeds has {min(self.seeds)}; a seed is not negative")
        for model in self.models:
            variant(model)

    def base(self) -> MQARRun:
        """What all runs have in common."""
        return changed(recipe(self.recipe), assignments=self.set)

    def specs(self) -> list[RunSpec]:
        """All runs, each once, small states first; `UserError` where no size fits a width."""
        found: dict[str, RunSpec] = {}
        for seed, lr, width, model in product(self.seeds, self.lrs, self.widths, self.models):
            fitting = [n for n in sorted(self.head_sizes) if width % n == 0]
            sizes = fitting if variant(model).sized else [None]
            refuse(not sizes, f"{model}: none of the head sizes {_listed(self.head_sizes)} divides the width {width}")
            for size in sizes:
                spec = RunSpec(model=model, width=width, head_size=size, lr=lr, seed=seed)
                found[spec.name] = spec
        return list(found.values())

    def run_of(self, spec: RunSpec) -> MQARRun:
        """The whole settings of a run."""
        run = changed(self.base(), model=spec.model, head_size=spec.head_size, width=spec.width)
        return replace(run, train=replace(run.train, seed=spec.seed), optim=replace(run.optim, lr=spec.lr))


def hardest(run: MQARRun) -> Segment:
    """The test segment by which models are ranked: as many pairs, in as many tokens, as the hardest that is trained on;
    the one with the most pairs where that is not tested."""
    trained = max(run.data.train_segments, key=lambda one: (one.pairs, one.length))
    tests = run.data.test_segments
    same = [one for one in tests if (one.pairs, one.length) == (trained.pairs, trained.length)]
    return same[0] if same else max(tests, key=lambda one: (one.pairs, one.length))


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
