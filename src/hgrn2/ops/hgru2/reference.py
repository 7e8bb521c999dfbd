"""The definition of the HGRN2 core: gates from raw projections, then the loop over tokens, in the dtype it is given."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hgrn2.ops.activations import activate
from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.gated_outer_scan import reference as outer
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


def hgru2(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    heads: int, reverse: bool, input_activation: str, output_activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Arguments and results of `hgrn2.ops.hgru2`; computes in the dtype of i (the float64 reference for float64
    inputs)."""
    if cu_seqlens is not None:
        pieces = []
        options = (heads, reverse, input_activation, output_activation, scale)
        for cut, first in documents(cu_seqlens, q.shape[1], state):
            pieces.append(hgru2(q[:, cut], f[:, cut], i[:, cut], lower_bound, first, None, *options))
        return torch.cat([o for o, _ in pieces], 1), torch.cat([s for _, s in pieces])
    q, f = q.to(i.dtype), f.to(i.dtype)
    forget, key = gates(f, lower_bound)
    split = (-1, q.shape[2] // heads)
    o, final = outer.scan_with_gates(
        activate(q, output_activation).unflatten(-1, split),
        key.unflatten(-1, split),
        activate(i, input_activation).unflatten(-1, (heads, -1)),
        forget.unflatten(-1, split),
        None if state is None else state.to(i.dtype),
        reverse=reverse,
        scale=scale,
    )
    return o.flatten(2), final.to(work_dtype(i.dtype))


def step(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor, heads: int,
    input_activation: str, output_activation: str, scale: float,
) -> Tensor:  # fmt: skip
    """One token in the state's dtype; updates `state` [B,H,K,V] in place and returns o [B,H*V] in i's dtype."""
    forget, key = gates(f.to(state.dtype), lower_bound)
    split = (heads, -1)
    value = activate(i.to(state.dtype), input_activation).unflatten(-1, split).unsqueeze(-2)
    query = activate(q.to(state.dtype), output_activation).unflatten(-1, split).unsqueeze(-2)
    state.mul_(forget.unflatten(-1, split).unsqueeze(-1)).add_(key.unflatten(-1, split).unsqueeze(-1) * value)
    with full_precision(state.device):
        return (scale * (query @ state)).flatten(1).to(i.dtype)
