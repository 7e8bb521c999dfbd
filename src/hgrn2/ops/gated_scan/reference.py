"""The definition: h_t = f_t h_{t-1} + x_t, a loop over tokens in the dtype it is given, differentiated by autograd."""

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.sequences import documents


def gated_scan(
    x: Tensor, f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Arguments and results of `hgrn2.ops.gated_scan`."""
    if cu_seqlens is not None:
        pieces = []
        for cut, first in documents(cu_seqlens, x.shape[1], state):
            pieces.append(gated_scan(x[:, cut], f[:, cut], first, None, reverse))
        return torch.cat([h for h, _ in pieces], 1), torch.cat([s for _, s in pieces])
    tokens, f = x.shape[1], f.to(x.dtype)
    s = x.new_zeros(x.shape[0], x.shape[2]) if state is None else state.to(x.dtype, copy=True)
    h: list[Tensor] = [s] * tokens
    for t in reversed(range(tokens)) if reverse else range(tokens):
        s = f[:, t] * s + x[:, t]
        h[t] = s
    return (torch.stack(h, 1) if tokens else torch.zeros_like(x)), s.to(work_dtype(x.dtype))
