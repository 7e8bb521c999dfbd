"""The definition: the paper's line in a loop over tokens, in the dtype it is given, differentiated by autograd.

S_t = Diag(exp(log_f_t)) S_{t-1} + k_t ⊗ v_t        o_t = scale · q_t S_t
"""

import torch
from torch import Tensor

from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.options import OuterInputs, OuterOptions
from hgrn2.ops.sequences import documents


def gated_outer_scan(x: OuterInputs, options: OuterOptions) -> tuple[Tensor, Tensor]:
    """Arguments and results of `hgrn2.ops.gated_outer_scan`; computes in the dtype of v."""
    q, k, v, log_f = x[:4]
    if x.cu_seqlens is None:
        start = None if x.state is None else x.state.to(v.dtype, copy=True)
        q, k, log_f = (y.to(v.dtype) for y in (q, k, log_f))
        o, final = scan_with_gates(q, k, v, log_f.exp(), start, reverse=options.reverse, scale=options.scale)
        return o, final.to(work_dtype(v.dtype))
    pieces = []
    for cut, first in documents(x.cu_seqlens, q.shape[1], x.state):
        q, k, v, log_f = (y[:, cut] for y in x[:4])
        pieces.append(gated_outer_scan(OuterInputs(q, k, v, log_f, first), options))
    return torch.cat([o for o, _ in pieces], 1), torch.cat([s for _, s in pieces])


def scan_with_gates(
    q: Tensor, k: Tensor, v: Tensor, f: Tensor, state: Tensor | None, *, reverse: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Dense batch: q, k and gates f [B,T,H,K], v [B,T,H,V], state [B,H,K,V] -> (o [B,T,H,V], state [B,H,K,V])."""
    batch, tokens, heads, width = q.shape
    s = v.new_zeros(batch, heads, width, v.shape[-1]) if state is None else state
    o: list[Tensor] = [v] * tokens
    with full_precision(v.device):
        for t in reversed(range(tokens)) if reverse else range(tokens):
            s = f[:, t].unsqueeze(-1) * s + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            o[t] = scale * (q[:, t].unsqueeze(-2) @ s).squeeze(-2)
    return (torch.stack(o, 1) if tokens else torch.zeros_like(v)), s
