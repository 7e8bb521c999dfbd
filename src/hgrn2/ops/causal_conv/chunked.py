"""The short causal convolution in whole-tensor operations: any device, packed documents without a loop over them.

Packed documents are spread out so that each one follows its own W-1 earlier inputs: token t of document n moves to row
t + (n+1)(W-1). Then every tap reads the row that lies j before, whatever the lengths, and nothing waits for the host.
"""

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.causal_conv import reference
from hgrn2.ops.sequences import offsets_of


def causal_conv(x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Arguments and results of `hgrn2.ops.causal_conv`, computed in the working dtype."""
    work = work_dtype(x.dtype)
    x_work, taps = x.to(work), weight.to(work)
    if cu_seqlens is None:
        y, final = reference.causal_conv(x_work, taps, state, None)
    else:
        y, final = _packed(x_work[0], taps, state, cu_seqlens)
    return y.to(x.dtype), final


def _packed(x: Tensor, taps: Tensor, state: Tensor | None, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    if not torch.compiler.is_compiling():  # reads the offsets, which a traced graph cannot
        offsets_of(cu_seqlens, 1, x.shape[0])
    past, documents = taps.shape[1] - 1, cu_seqlens.numel() - 1
    offsets, number = cu_seqlens.to(torch.int64), torch.arange(documents, device=x.device)
    token = torch.arange(x.shape[0], device=x.device)
    rows = token + torch.searchsorted(offsets, token, right=True) * past
    edge = number[:, None] * past + torch.arange(past, device=x.device)  # [N,W-1]
    spread = x.new_zeros(x.shape[0] + documents * past, x.shape[1]).index_copy(0, rows, x)
    if state is not None:
        spread = spread.index_copy(0, (offsets[:-1, None] + edge).flatten(), state.to(x.dtype).flatten(0, 1))
    y = torch.zeros_like(x)
    for j in range(past + 1):
        y = y + taps[:, j] * spread[rows - j]
    return y.unsqueeze(0), spread[offsets[1:, None] + edge]
