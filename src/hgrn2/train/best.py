"""The weights with the lowest held-out loss so far, and for how long nothing better has come."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.train.weights import OtherWeights


class BestWeights(OtherWeights):
    """Keeps a copy of what was measured best; it is what is saved, and what the model ends with.

    What is measured is in the model when `measured` is called: the running mean, where there is one.
    """

    prefix = "latest"

    def __init__(self, model: nn.Module, all_of: Callable[[bool], bool] = bool) -> None:
        """all_of: whether something holds in every process that has a piece of the model."""
        super().__init__(model)
        self.all_of = all_of
        self.loss = math.inf
        self.step = 0
        self.waited = 0
        """Measurements since the best one."""

    @torch.no_grad()
    def measured(self, step: int, loss: float) -> None:
        """Take in a measurement of the model as it is; one that is not a number is never the best."""
        if not loss < self.loss:
            self.waited += 1
            return
        self.loss, self.step, self.waited = loss, step, 0
        for name, value in self.own.items():
            self.values[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[dict[str, Tensor]]:
        """As of any other weights; where the model holds the best ones itself, nothing is behind them."""
        same = all(torch.equal(value, self.values[name]) for name, value in self.own.items())
        if self.loss == math.inf or self.all_of(same):
            yield {}
            return
        with super().in_place() as behind:
            yield behind

    def state(self) -> dict[str, Any]:
        """What an exact resume needs beside the tensors, as plain JSON values."""
        return {"loss": None if self.loss == math.inf else self.loss, "step": self.step, "waited": self.waited}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.loss = math.inf if state["loss"] is None else state["loss"]
        self.step, self.waited = state["step"], state["waited"]
