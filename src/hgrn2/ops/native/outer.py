"""The native backend of the outer-product scan, for prepared (q, k, v, log f) and for raw HGRN2 projections."""

import torch
from torch import Tensor

from hgrn2.ops.native import call


def scan_forward(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, offsets: Tensor, *, heads: int,
                 reverse: bool, scale: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q, k, log_f [tokens, H*K], v [tokens, H*V] -> (o [tokens, H*V], state [N,H,K,V])."""
    return _forward(q, log_f, k, v, None, state, offsets, heads, raw=False, reverse=reverse, scale=scale)


def hgru2_forward(q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, offsets: Tensor, *,
                  heads: int, reverse: bool, scale: float, input_activation: str,
                  output_activation: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Raw projections q, f [tokens, H*K], i [tokens, H*V] -> (o [tokens, H*V], state [N,H,K,V])."""
    return _forward(q, f, None, i, lower_bound, state, offsets, heads, raw=True, reverse=reverse, scale=scale,
                    input_activation=input_activation, output_activation=output_activation)  # fmt: skip


def _forward(q, f, k, v, lower_bound, state, offsets, heads, **options) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    docs = offsets.numel() - 1
    o = v.new_empty(v.shape)
    final = v.new_empty(docs, heads, q.shape[1] // heads, v.shape[1] // heads)
    p = call.problem(docs, heads, q, f, k, v, **options)
    call.outer_forward(p, offsets, (q, f, k, v, lower_bound, state), o, final)
    return o, final


def scan_backward(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, grad_o: Tensor,
                  grad_state: Tensor | None, offsets: Tensor, *, heads: int, reverse: bool,
                  scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_f and the initial state."""
    docs = offsets.numel() - 1
    dq, dk, dv, df = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, log_f))
    d_state = v.new_empty(docs, heads, q.shape[1] // heads, v.shape[1] // heads)
    p = call.problem(docs, heads, q, log_f, k, v, raw=False, reverse=reverse, scale=scale)
    call.outer_backward(p, offsets, (q, log_f, k, v, None, state), grad_o, grad_state, (dq, df, dk, dv, None, d_state))
    return dq, dk, dv, df, d_state


def hgru2_backward(q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, grad_o: Tensor,
                   grad_state: Tensor | None, offsets: Tensor, *, heads: int, reverse: bool, scale: float,
                   input_activation: str, output_activation: str
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Gradients of q, f, i, the lower bound (None without one) and the initial state."""
    docs = offsets.numel() - 1
    dq, df, di = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, f, i))
    d_lower_bound = None if lower_bound is None else lower_bound.new_zeros(docs, lower_bound.numel())
    d_state = i.new_empty(docs, heads, q.shape[1] // heads, i.shape[1] // heads)
    p = call.problem(docs, heads, q, f, None, i, raw=True, reverse=reverse, scale=scale,
                     input_activation=input_activation, output_activation=output_activation)  # fmt: skip
    call.outer_backward(
        p, offsets, (q, f, None, i, lower_bound, state), grad_o, grad_state, (dq, df, None, di, d_lower_bound, d_state)
    )
    return dq, df, di, None if d_lower_bound is None else d_lower_bound.sum(0), d_state


def hgru2_step(q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor, *, heads: int, scale: float,
               input_activation: str, output_activation: str) -> Tensor:  # fmt: skip
    """One token q, f [B,H*K], i [B,H*V]; updates `state` in place and returns o [B,H*V] in i's dtype."""
    work, rows = state.dtype, state.contiguous()
    q, f, i_work = (call.rows(x, work) for x in (q, f, i))
    lower_bound = None if lower_bound is None else lower_bound.to(work).contiguous()
    o = i_work.new_empty(i_work.shape)
    p = call.problem(q.shape[0], heads, q, f, None, i_work, raw=True, reverse=False, scale=scale,
                     input_activation=input_activation, output_activation=output_activation)  # fmt: skip
    call.outer_forward(p, torch.arange(q.shape[0] + 1), (q, f, None, i_work, lower_bound, rows), o, rows)
    if rows is not state:
        state.copy_(rows)
    return o.to(i.dtype)
