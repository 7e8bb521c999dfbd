"""The backends of the gated unit: `forward` takes (x, activation)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hgrn2.ops.backend import Reference
from hgrn2.ops.rowwise import RowBackend

Activation = Literal["none", "silu", "gelu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": functional.silu, "gelu": functional.gelu}


def plain(x: Tensor, activation: str) -> Tensor:
    """Two operations of PyTorch."""
    gate, value = x.chunk(2, -1)
    return (_ACTIVATIONS[activation](gate) if activation in _ACTIVATIONS else gate) * value


class Native(RowBackend):
    """C++."""

    def forward(self, x: Tensor, activation: str) -> Tensor:
        from hgrn2.ops.native import call

        y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        call.rowwise("gated_forward", y, (x.contiguous(), y), activation=activation)
        return y

    def backward(self, x: Tensor, activation: str, grad: Tensor) -> Tensor:
        from hgrn2.ops.native import call

        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        call.rowwise("gated_backward", grad, (x.contiguous(), grad.contiguous(), dx), activation=activation)
        return dx


class Definition(Reference):
    """Plain PyTorch."""

    def forward(self, x: Tensor, activation: str) -> Tensor:
        return plain(x, activation)


BACKENDS = (Native(), Definition())
