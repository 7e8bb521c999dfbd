"""The general scan as a custom operator of PyTorch; see hgru2/registration.py, whose shape this follows."""

import torch
from torch import Tensor

from hgrn2.ops.backend import find
from hgrn2.ops.operator import operator
from hgrn2.ops.options import OuterInputs, OuterOptions


@operator("gated_outer_scan")
def forward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    reverse: bool, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, final state); arguments as in `hgrn2.ops.gated_outer_scan`, every option resolved."""
    x = OuterInputs(q, k, v, log_f, state, cu_seqlens)
    return find("gated_outer_scan", backend).forward(x, OuterOptions(reverse, scale))


@forward.register_fake
def _(*given):  # type: ignore[no-untyped-def]
    x = OuterInputs(*given[:6])
    return x.v.new_empty(x.v.shape), x.v.new_empty(x.states(), dtype=x.work)


@operator("gated_outer_scan_backward")
def backward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    grad_o: Tensor, grad_state: Tensor, reverse: bool, scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_f and the initial state."""
    x = OuterInputs(q, k, v, log_f, state, cu_seqlens)
    grads = find("gated_outer_scan", backend).backward(x, grad_o, grad_state, OuterOptions(reverse, scale))
    dq, dk, dv, dl = (g.reshape(y.shape).to(y.dtype) for g, y in zip(grads, x[:4], strict=False))
    return dq, dk, dv, dl, grads[4] if state is None else grads[4].to(state.dtype)


@backward.register_fake
def _(*given):  # type: ignore[no-untyped-def]
    x, grad_state = OuterInputs(*given[:6]), given[7]
    d_state = torch.empty_like(grad_state if x.state is None else x.state)
    return (*(y.new_empty(y.shape) for y in x[:4]), d_state)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _autograd(ctx, grad_o: Tensor, grad_state: Tensor):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    *grads, d_state = backward(*tensors, grad_o, grad_state, *ctx.options)
    return *grads, None if tensors[4] is None else d_state, None, *([None] * len(ctx.options))


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
