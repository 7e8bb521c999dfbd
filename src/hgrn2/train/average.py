"""The running mean of a model's weights, which often classifies better than the last weights do.

    a <- d_t a + (1 - d_t) w,    d_t = min(decay, (1 + t) / (10 + t))

The rising d_t lets the mean forget the first steps soon. Statistics of batch norms are averaged alike; whole numbers,
such as their step counters, are copied. Source of the rule: the moving averages of TensorFlow and timm.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RAW = "raw/"


class WeightAverage:
    """Averages the weights of `model`, and takes their place while it is measured or saved."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        # The model's own tensors, which every update changes in place; listing them anew would cost more than the mean.
        self.own = model.state_dict()
        self.values = {name: value.detach().clone() for name, value in self.own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        own, share = self.own, min(self.decay, (1 + step) / (10 + step))
        means = [self.values[name] for name in own if own[name].is_floating_point()]
        torch._foreach_lerp_(means, [value for value in own.values() if value.is_floating_point()], 1 - share)  # pyright: ignore[reportPrivateImportUsage]
        for name, value in own.items():
            if not value.is_floating_point():
                self.values[name].copy_(value)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the mean."""
        for name, value in self.own.items():
            kept = value.clone()
            value.copy_(self.values[name])
            self.values[name].copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[dict[str, Tensor]]:
        """The model has the mean as its weights; what it had is told as tensors by name, to be saved beside them."""
        self.swap()
        try:
            yield {RAW + name: value for name, value in self.values.items()}
        finally:
            self.swap()

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model holds a saved mean: put the weights behind it back; returns the tensors that are not theirs."""
        for name, value in self.own.items():
            self.values[name].copy_(value)
            value.copy_(tensors[RAW + name])
        return {name: value for name, value in tensors.items() if not name.startswith(RAW)}
