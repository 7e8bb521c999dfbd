"""What a trainer needs to know of a task. Language, images and long-range tasks each bring one."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Task(Protocol):
    """Data and loss of a run; every method is a pure function of its arguments, so that a resumed run sees the same."""

    tokens_per_step: int
    data_identity: str
    """Differs where the training data does, wherever it lies; empty where the settings decide it."""

    def batch(self, step: int, part: int, parts: int) -> Any:
        """The tensors of one accumulation part of a step, on the run's device."""
        ...

    def epochs(self, steps: int) -> float:
        """How often so many steps go through the training data."""
        ...

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Mean loss of a part, in nats where it is a likelihood."""
        ...

    def evaluate(self, model: Any) -> dict[str, float | None]:
        """A quick measurement on held-out data: `loss` and, where bytes are known, `bits_per_byte`."""
        ...

    def save_assets(self, folder: Path) -> None:
        """Write what a saved model needs beside its weights, such as a tokenizer, into the run folder."""
        ...
