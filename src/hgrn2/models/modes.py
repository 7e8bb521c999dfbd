"""Model modes for reading: no dropout, no gradients, and the former mode back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and `torch.inference_mode`; a model in training comes back in training mode."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()
