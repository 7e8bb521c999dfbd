"""Whether a model is being trained or read, and the layers that care: dropout, stochastic depth, batch norm.

A module's `training` is one switch for every thread. Whoever reads a model (generates, evaluates) therefore leaves it
alone and says so for its own thread, and what a training step does otherwise asks `learns`: several threads may read a
model in training mode, beside one that trains it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_READING: ContextVar[bool] = ContextVar("hgrn2_reading", default=False)


@contextmanager
def marked_as_reading() -> Iterator[None]:
    """Within it, and in this thread alone, no module of ours behaves as in a training step."""
    before = _READING.set(True)
    try:
        yield
    finally:
        _READING.reset(before)


def learns(module: nn.Module) -> bool:
    """Whether this call is part of a training step: the module is in training mode, and this thread does not read."""
    if not module.training:
        return False
    if torch.compiler.is_compiling():  # a context variable cannot be compiled; reading never has gradients
        return torch.is_grad_enabled()
    return not _READING.get()


class Dropout(nn.Dropout):
    """`nn.Dropout` that acts in training steps only."""

    def forward(self, input: Tensor) -> Tensor:
        """[...] -> [...]."""
        return nn.functional.dropout(input, self.p, learns(self), self.inplace)


class DropPath(nn.Module):
    """Stochastic depth: in training, what a branch adds is left out for a random share `rate` of the rows of a batch,
    and scaled by 1 / (1 - rate) in the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B,...] -> [B,...]."""
        if self.rate == 0 or not learns(self):
            return x
        shape = (x.shape[0], *([1] * (x.dim() - 1)))
        return x * torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate).div_(1 - self.rate)
