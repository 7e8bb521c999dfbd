"""Rotary positions: pairs of channels of queries and keys are turned by angles that grow with the position.

The pair of channels (j, j + n/2) at position p is turned by p · 10000^(-2j/n) (arXiv 2104.09864; pairs as in LLaMA).
"""

import torch
from torch import Tensor

from hgrn2.ops.operator import operator

BASE = 10_000.0


def rotary_turns(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """positions [B or 1,T] of heads of `size` channels -> cosines and sines [B or 1,T,2,size/2] in this dtype.

    In a compiled model it is one operator: the compiler would otherwise compute power, cosine and sine anew for each
    value of each head, forward and backward, which takes longer than attention itself.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return _turns(positions, size, dtype)
    return _table(positions, size, dtype)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x [B,T,H,n] turned by `turns` [B or 1,T,2,n/2]; computed in the dtype of the turns."""
    cos, sin = turns.unsqueeze(2).unbind(3)
    a, b = x.to(turns.dtype).split(x.shape[-1] // 2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def _table(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    half = size // 2
    speed = BASE ** (-torch.arange(half, device=positions.device, dtype=dtype) / half)
    angle = positions.to(dtype).unsqueeze(-1) * speed
    return torch.stack((angle.cos(), angle.sin()), -2)


@operator("rotary_turns")
def _turns(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return _table(positions, size, dtype)


@_turns.register_fake
def _(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return positions.new_empty((*positions.shape, 2, size // 2), dtype=dtype)
