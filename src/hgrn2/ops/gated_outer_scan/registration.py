"""The general scan as a custom operator of PyTorch; see hgru2/registration.py, whose shape this follows."""

import torch
from torch import Tensor

from hgrn2.ops.backend import find, work_dtype
from hgrn2.ops.operator import operator


@operator("gated_outer_scan")
def forward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    reverse: bool, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, final state); arguments as in `hgrn2.ops.gated_outer_scan`, every option resolved."""
    return find("gated_outer_scan", backend).forward(q, k, v, log_f, state, cu_seqlens, reverse, scale)


@forward.register_fake
def _(q, k, v, log_f, state, cu_seqlens, reverse, scale, backend):
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, q.shape[2], q.shape[3], v.shape[3])
    return v.new_empty(v.shape), v.new_empty(shape, dtype=work_dtype(v.dtype))


@operator("gated_outer_scan_backward")
def backward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    grad_o: Tensor, grad_state: Tensor, reverse: bool, scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_f and the initial state."""
    tensors = (q, k, v, log_f, state, cu_seqlens, grad_o, grad_state)
    grads = find("gated_outer_scan", backend).backward(*tensors, reverse, scale)
    dq, dk, dv, dl = (g.reshape(x.shape).to(x.dtype) for g, x in zip(grads, tensors[:4], strict=False))
    return dq, dk, dv, dl, grads[4] if state is None else grads[4].to(state.dtype)


@backward.register_fake
def _(q, k, v, log_f, state, cu_seqlens, grad_o, grad_state, reverse, scale, backend):
    d_state = torch.empty_like(grad_state) if state is None else torch.empty_like(state)
    return (*(x.new_empty(x.shape) for x in (q, k, v, log_f)), d_state)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _autograd(ctx, grad_o: Tensor, grad_state: Tensor):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    *grads, d_state = backward(*tensors, grad_o, grad_state, *ctx.options)
    return *grads, None if tensors[4] is None else d_state, None, *([None] * len(ctx.options))


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
