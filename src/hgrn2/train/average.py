"""The running mean of a model's weights, which often classifies better than the last weights do.

    a <- d_t a + (1 - d_t) w,    d_t = min(decay, (1 + t) / (10 + t))

The rising d_t lets the mean forget the first steps soon. Statistics of batch norms are averaged alike; whole numbers,
such as their step counters, are copied. Source of the rule: the moving averages of TensorFlow and timm.
"""

import torch
from torch import nn

from hgrn2.train.weights import OtherWeights


class WeightAverage(OtherWeights):
    """Averages the weights of `model`, and takes their place while it is measured or saved."""

    prefix = "raw"

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        own, share = self.own, min(self.decay, (1 + step) / (10 + step))
        means = [self.values[name] for name in own if own[name].is_floating_point()]
        torch._foreach_lerp_(means, [value for value in own.values() if value.is_floating_point()], 1 - share)  # pyright: ignore[reportPrivateImportUsage]
        for name, value in own.items():
            if not value.is_floating_point():
                self.values[name].copy_(value)
