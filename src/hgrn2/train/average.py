"""The running mean of a model's weights, which often classifies better than the last weights do.

    a <- d_t a + (1 - d_t) w,    d_t = min(decay, (1 + t) / (10 + t))

The rising d_t lets the mean forget the first steps soon. Statistics of batch norms are averaged alike; whole numbers,
such as their step counters, are copied. Source of the rule: the moving averages of TensorFlow and timm. The sums are
those of torch.optim.swa_utils; its `AveragedModel` would hold a second module, where what is held here changes places
with the trained weights (docs/log.md).
"""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
        real = [name for name, value in self.own.items() if value.is_floating_point()]
        mean = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        mean([self.values[name] for name in real], [self.own[name] for name in real], step)
        for name in self.own.keys() - set(real):
            self.values[name].copy_(self.own[name])
