"""What the trainer and the runner need to know of a task: language modelling, recall, classification, state tuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from hgrn2.layers.state import ModelState
from hgrn2.models.saved import Model
from hgrn2.train.same_run import refuse_other_run


class Report(Protocol):
    """Writes `folder`/report.html; reports are made above this package, so that a task brings one."""

    def __call__(
        self, folder: Path, /, *, config: dict[str, Any], environment: dict[str, Any],
        metrics: list[dict[str, Any]], summary: dict[str, Any],
    ) -> Any: ...  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trained model came to, as its task measures it."""

    held_out: dict[str, dict[str, Any]]
    """Measurements by name, plain JSON values."""
    report: Report
    """`hgrn2.report.write.write_report` with what this task shows besides what every run shows."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else summary.json has of this task."""
    samples: tuple[Any, ...] = ()
    """Texts that the model wrote."""


class Task(Protocol):
    """Data, model, loss and measurements of a run on its device. Whoever writes one inherits from this class.

    `batch` and `epochs` are pure functions of their arguments, so that a resumed run sees the same data.
    """

    run: Any
    """Its settings, a `hgrn2.train.config.Run`."""
    device: torch.device
    tokens_per_step: int
    data_identity: str
    """Differs where the training data does, wherever it lies; empty where the settings decide it."""
    assets: tuple[str, ...] = ()
    """Names of files and folders that a run folder of this kind has beside the usual ones."""
    carries: bool = False
    """Whether states go from each step to the next: then `loss_from` is asked instead of `loss`."""
    flops_per_token: int | None = None
    """Floating-point operations of a training step for each of its tokens, where they are counted."""
    unread: Mapping[str, str] = MappingProxyType({})
    """Settings that this data does not ask for, beside those of `Run.unread`, with the reason."""

    def model(self) -> Model:
        """A new model on the device; its first weights come from PyTorch's random generator."""
        ...

    def batch(self, step: int, part: int, parts: int) -> Any:
        """The tensors of one accumulation part of a step, on the run's device."""
        ...

    def epochs(self, steps: int) -> float:
        """How often so many steps go through the training data."""
        ...

    def shares(self, steps: int) -> dict[str, Any]:
        """Where the data has several parts: how much of each so many steps have read, for the summary."""
        return {}

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Mean loss of a part, in nats where it is a likelihood."""
        ...

    def loss_from(self, model: Any, batch: Any, state: ModelState | None) -> tuple[Tensor, ModelState]:
        """As `loss`, from the states [B] in which the same part of the step before ended (None: there was none), and
        the states in which this one ends, without their history; of a task that `carries`."""
        raise TypeError(f"{type(self).__name__} carries no states")

    def evaluate(self, model: Any) -> dict[str, Any]:
        """A quick measurement on held-out data: `loss` and, where they are known, `bits_per_byte`, `accuracy`, and
        `corpora`, losses of further texts by name."""
        ...

    def finish(self, model: Any, folder: Path) -> Outcome:
        """Measure the trained model on everything that was held out, once, after the last step; what else the task
        makes of it goes into the run folder."""
        ...

    def refuse_other(self, folder: Path, saved: Any) -> None:
        """Raise `UserError` where `saved`, the settings that the folder holds, are those of another run."""
        refuse_other_run(folder, self.run, saved)

    def save_assets(self, folder: Path) -> None:
        """Write what a saved model needs beside its weights, such as a tokenizer, into the run folder."""
