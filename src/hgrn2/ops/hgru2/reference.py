"""The definition of the HGRN2 core: gates from raw projections, then the loop over tokens, in the dtype it is given."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hgrn2.ops.activations import activate
from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.gated_outer_scan import reference as outer
from hgrn2.ops.options import Inputs, ScanOptions
from hgrn2.ops.sequences import documents


def gates(f: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forget gate γ + (1-γ)σ(x) and its complement (1-γ)σ(-x), the tied key.

    Both are written so that autograd does not cancel. σ as exp(log σ) gives the slope σ(x)σ(-x), where y(1-y), that of
    `sigmoid`, is 0 from |x| = 37 on; the gate as σ(x) + γσ(-x) gives σ(-x) for γ, not 1 - σ(x).
    """
    up, down = logsigmoid(f).exp(), logsigmoid(-f).exp()
    if lower_bound is None:
        return up, down
    lower_bound = lower_bound.to(f.dtype)
    return up + lower_bound * down, (1 - lower_bound) * down


def hgru2(x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """Arguments and results of `hgrn2.ops.hgru2`; computes in the dtype of i (the float64 reference for float64
    inputs)."""
    if x.cu_seqlens is not None:
        pieces = []
        for cut, first in documents(x.cu_seqlens, x.q.shape[1], x.state):
            q, f, i = (y[:, cut] for y in x[:3])
            pieces.append(hgru2(Inputs(q, f, i, x.lower_bound, first), options))
        return torch.cat([o for o, _ in pieces], 1), torch.cat([s for _, s in pieces])
    dtype, split = x.i.dtype, (-1, x.q.shape[2] // options.heads)
    forget, key = gates(x.f.to(dtype), x.lower_bound)
    o, final = outer.scan_with_gates(
        activate(x.q.to(dtype), options.output_activation).unflatten(-1, split),
        key.unflatten(-1, split),
        activate(x.i, options.input_activation).unflatten(-1, (options.heads, -1)),
        forget.unflatten(-1, split),
        None if x.state is None else x.state.to(dtype),
        reverse=options.reverse,
        scale=options.scale,
    )
    return o.flatten(2), final.to(work_dtype(dtype))


def step(x: Inputs, options: ScanOptions) -> Tensor:
    """One token in the state's dtype; updates the state [B,H,K,V] in place and returns o [B,H*V] in i's dtype."""
    state, split = x.state, (options.heads, -1)
    assert state is not None
    q, f, i = (y.to(state.dtype) for y in x[:3])
    forget, key = gates(f, x.lower_bound)
    value = activate(i, options.input_activation).unflatten(-1, split).unsqueeze(-2)
    query = activate(q, options.output_activation).unflatten(-1, split).unsqueeze(-2)
    state.mul_(forget.unflatten(-1, split).unsqueeze(-1)).add_(key.unflatten(-1, split).unsqueeze(-1) * value)
    with full_precision(state.device):
        return (options.scale * (query @ state)).flatten(1).to(x.i.dtype)
