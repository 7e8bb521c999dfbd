"""Reading a model: no dropout, no gradients, in this thread alone; the model itself is not switched to another mode."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hgrn2.layers.reading import marked_as_reading

_INERT = ("linear", "sparse", "container", "conv", "normalization", "activation")
"""Files of torch.nn.modules whose classes do the same in both modes, but for these two."""
_EXCEPTIONS = (nn.RReLU, nn.MultiheadAttention)
_LOCK = threading.Lock()
_READERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Modules of other packages that are held in evaluation mode, and how many readers need them so."""


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """`torch.inference_mode` without dropout, stochastic depth and batch statistics, whatever mode the model is in.

    Modules of this package take that from the thread (`hgrn2.layers.reading`). Those of others (adapters, the DeiT
    baseline) know one mode for all threads: they are in evaluation mode from the first reader to the last one.
    """
    held = _hold(model)
    try:
        with marked_as_reading(), torch.inference_mode():
            yield
    finally:
        _release(held)


def _hold(model: nn.Module) -> list[nn.Module]:
    if not model.training and not _READERS:
        return []
    with _LOCK:
        held = [m for m in model.modules() if _foreign(m) and (m.training or m in _READERS)]
        for module in held:
            module.training = False
            _READERS[module] = _READERS.get(module, 0) + 1
    return held


def _release(held: list[nn.Module]) -> None:
    if not held:
        return
    with _LOCK:
        for module in held:
            _READERS[module] -= 1
            if not _READERS[module]:
                del _READERS[module]
                module.training = True


def _foreign(module: nn.Module) -> bool:
    """Whether a module may depend on its mode without asking `learns`."""
    home = type(module).__module__
    if isinstance(module, _EXCEPTIONS):
        return True
    return not home.startswith("hgrn2.") and not home.startswith(tuple(f"torch.nn.modules.{name}" for name in _INERT))
