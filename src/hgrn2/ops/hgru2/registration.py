"""The HGRN2 core as a custom operator of PyTorch: shapes for tracing, a backward, and the call of a backend.

Under autocast the projections arrive in a low precision and γ and the state in float32, and both are what the operator
wants, so it registers no casts: it works in float32 inside and returns o in i's dtype.
"""

import torch
from torch import Tensor

from hgrn2.ops.backend import find
from hgrn2.ops.operator import operator
from hgrn2.ops.options import Inputs, ScanOptions


@operator("hgru2")
def forward(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    heads: int, reverse: bool, input_activation: str, output_activation: str, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, final state); arguments as in `hgrn2.ops.hgru2`, every option resolved."""
    options = ScanOptions(heads, reverse, input_activation, output_activation, scale)
    return find("hgru2", backend).forward(Inputs(q, f, i, lower_bound, state, cu_seqlens), options)


@forward.register_fake
def _(*given):  # type: ignore[no-untyped-def]
    x, options = Inputs(*given[:6]), ScanOptions(*given[6:11])
    return x.i.new_empty(x.i.shape), x.i.new_empty(x.states(options.heads), dtype=x.work)


@operator("hgru2_backward")
def backward(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    grad_o: Tensor, grad_state: Tensor | None, heads: int, reverse: bool, input_activation: str, output_activation: str,
    scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, f, i, lower_bound and the initial state (both empty where there is none).

    Without a grad_state the final state was not used; only the CUDA kernels save the work and memory of its zeros.
    """
    options = ScanOptions(heads, reverse, input_activation, output_activation, scale)
    x, chosen = Inputs(q, f, i, lower_bound, state, cu_seqlens), find("hgru2", backend)
    if grad_state is None and not chosen.optional_grad_state:
        grad_state = i.new_zeros(x.states(heads), dtype=x.work)
    dq, df, di, d_lower_bound, d_state = chosen.backward(x, grad_o, grad_state, options)
    dq, df, di = (g.reshape(x.shape).to(x.dtype) for g, x in ((dq, q), (df, f), (di, i)))
    d_lower_bound = (
        i.new_empty(0)
        if lower_bound is None or d_lower_bound is None
        else d_lower_bound.flatten().to(lower_bound.dtype)
    )
    d_state = i.new_empty(0) if state is None else d_state.to(state.dtype)
    return dq, df, di, d_lower_bound, d_state


@backward.register_fake
def _(*given):  # type: ignore[no-untyped-def]
    x = Inputs(*given[:6])
    d_lower_bound, d_state = (x.i.new_empty(0) if y is None else torch.empty_like(y) for y in (x.lower_bound, x.state))
    return *(y.new_empty(y.shape) for y in x[:3]), d_lower_bound, d_state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _autograd(ctx, grad_o: Tensor | None, grad_state: Tensor | None):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors
    grad_o = torch.zeros_like(tensors[2]) if grad_o is None else grad_o
    dq, df, di, d_lower_bound, d_state = backward(*tensors, grad_o, grad_state, *ctx.options)
    lower_bound, state = tensors[3:5]
    optional = (None if lower_bound is None else d_lower_bound, None if state is None else d_state)
    return dq, df, di, *optional, None, *([None] * len(ctx.options))


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
