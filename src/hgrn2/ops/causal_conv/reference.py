"""The definition of the short causal convolution as W shifted products, in the dtype it is given."""

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.sequences import documents


def causal_conv(x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Arguments and results of `hgrn2.ops.causal_conv`."""
    if cu_seqlens is not None:
        pieces = []
        for cut, first in documents(cu_seqlens, x.shape[1], state):
            pieces.append(causal_conv(x[:, cut], weight, first, None))
        return torch.cat([y for y, _ in pieces], 1), torch.cat([s for _, s in pieces])
    width, tokens = weight.shape[1], x.shape[1]
    past = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    window = torch.cat((past, x), 1)
    taps = weight.to(x.dtype)
    y = torch.zeros_like(x)
    for j in range(width):
        y = y + taps[:, j] * window[:, width - 1 - j : width - 1 - j + tokens]
    return y, window[:, tokens:].to(work_dtype(x.dtype), copy=True)
