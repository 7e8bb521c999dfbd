"""The native backend of the outer-product scan, for prepared (q, k, v, log f) and for raw HGRN2 projections.

Token tensors are rows [tokens, channels] of all sequences, and `cu_seqlens` holds the offsets of the sequences in them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hgrn2.ops.native import call
from hgrn2.ops.options import Inputs, OuterInputs, ScanOptions


class _Rows(NamedTuple):
    """What the kernels read, in their order; no k: raw projections."""

    q: Tensor
    f: Tensor
    k: Tensor | None
    v: Tensor
    lower_bound: Tensor | None
    state: Tensor | None


def scan_forward(x: OuterInputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """q, k, log_f [tokens, H*K], v [tokens, H*V] -> (o [tokens, H*V], state [N,H,K,V])."""
    return _forward(_Rows(x.q, x.log_f, x.k, x.v, None, x.state), x.cu_seqlens, options)


def hgru2_forward(x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """Raw projections q, f [tokens, H*K], i [tokens, H*V] -> (o [tokens, H*V], state [N,H,K,V])."""
    return _forward(_Rows(x.q, x.f, None, x.i, x.lower_bound, x.state), x.cu_seqlens, options)


def _forward(x: _Rows, offsets: Tensor | None, options: ScanOptions) -> tuple[Tensor, Tensor]:
    assert offsets is not None
    o, final = x.v.new_empty(x.v.shape), _states(x, offsets, options)
    call.outer_forward(call.problem(final.shape[0], x, options), offsets, x, o, final)
    return o, final


def _states(x: _Rows, offsets: Tensor, options: ScanOptions) -> Tensor:
    heads = options.heads
    return x.v.new_empty(offsets.numel() - 1, heads, x.q.shape[1] // heads, x.v.shape[1] // heads)


def scan_backward(
    x: OuterInputs, grad_o: Tensor, grad_state: Tensor, options: ScanOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_f and the initial state."""
    rows = _Rows(x.q, x.log_f, x.k, x.v, None, x.state)
    dq, df, dk, dv, _, d_state = _backward(rows, x.cu_seqlens, grad_o, grad_state, options)
    assert dk is not None
    assert d_state is not None
    return dq, dk, dv, df, d_state


def hgru2_backward(
    x: Inputs, grad_o: Tensor, grad_state: Tensor, options: ScanOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, f, i, the lower bound (None without one) and the initial state."""
    rows = _Rows(x.q, x.f, None, x.i, x.lower_bound, x.state)
    dq, df, _, di, d_lower_bound, d_state = _backward(rows, x.cu_seqlens, grad_o, grad_state, options)
    return dq, df, di, None if d_lower_bound is None else d_lower_bound.sum(0), d_state


def _backward(x: _Rows, offsets: Tensor | None, grad_o: Tensor, grad_state: Tensor, options: ScanOptions) -> _Rows:
    assert offsets is not None
    dq, df, dk, dv = (None if y is None else torch.empty_like(y, memory_format=torch.contiguous_format) for y in x[:4])
    d_state = _states(x, offsets, options)
    d_lower_bound = None if x.lower_bound is None else x.lower_bound.new_zeros(d_state.shape[0], x.lower_bound.numel())
    assert dq is not None
    assert df is not None
    assert dv is not None
    found = _Rows(dq, df, dk, dv, d_lower_bound, d_state)
    call.outer_backward(call.problem(d_state.shape[0], x, options), offsets, x, grad_o, grad_state, found)
    return found


def hgru2_step(x: Inputs, options: ScanOptions) -> Tensor:
    """One token q, f [B,H*K], i [B,H*V]; updates the state in place and returns o [B,H*V] in i's dtype."""
    state = x.state
    assert state is not None
    work, states = state.dtype, state.contiguous()
    q, f, i = (call.rows(y, work) for y in x[:3])
    lower_bound = None if x.lower_bound is None else x.lower_bound.to(work).contiguous()
    o, rows = i.new_empty(i.shape), _Rows(q, f, None, i, lower_bound, states)
    p = call.problem(q.shape[0], rows, options._replace(reverse=False))
    call.outer_forward(p, torch.arange(q.shape[0] + 1), rows, o, states)
    if states is not state:
        state.copy_(states)
    return o.to(x.i.dtype)
