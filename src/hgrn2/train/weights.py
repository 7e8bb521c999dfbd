"""Weights that take the place of those being trained while a model is measured, saved, or handed over at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hgrn2.parallel.pieces import local


class OtherWeights:
    """A second set of a model's weights, statistics and counters included, that changes places with the first.

    Of a sharded model it has this process's pieces. A checkpoint holds it as the model's weights; those behind it are
    saved as tensors named `prefix`/NAME.
    """

    prefix: str

    def __init__(self, model: nn.Module) -> None:
        # The model's own tensors, which every update changes in place; listing them anew would cost more than a mean.
        self.own = {name: local(value) for name, value in model.state_dict().items()}
        self.values = {name: value.detach().clone() for name, value in self.own.items()}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and these."""
        for name, value in self.own.items():
            kept = value.clone()
            value.copy_(self.values[name])
            self.values[name].copy_(kept)

    @torch.no_grad()
    def hand_over(self) -> None:
        """The model has these weights from now on."""
        for name, value in self.own.items():
            value.copy_(self.values[name])

    @contextmanager
    def in_place(self) -> Iterator[dict[str, Tensor]]:
        """The model has these weights; what it had is told as tensors by name, to be saved beside them."""
        self.swap()
        try:
            yield {f"{self.prefix}/{name}": value for name, value in self.values.items()}
        finally:
            self.swap()

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model holds these weights as they were saved: put what was behind them back, where something was;
        returns the tensors that are not its."""
        for name, value in self.own.items():
            self.values[name].copy_(value)
            value.copy_(tensors.get(f"{self.prefix}/{name}", value))
        return {name: value for name, value in tensors.items() if not name.startswith(f"{self.prefix}/")}
