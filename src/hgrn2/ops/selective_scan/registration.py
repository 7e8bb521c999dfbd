"""The selective scan as a custom operator of PyTorch; see hgru2/registration.py, whose shape this follows."""

import torch
from torch import Tensor

from hgrn2.ops.backend import find
from hgrn2.ops.operator import operator


@operator("selective_scan")
def forward(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """(y, final state)."""
    return find("selective_scan", backend).forward(x, step, decay, write, read, state, None)


@forward.register_fake
def _(x, step, decay, write, read, state, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), step.new_empty((x.shape[0], *decay.shape))


@operator("selective_scan_backward")
def backward(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None, grad_y: Tensor,
    grad_state: Tensor, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, step, decay, write, read and the initial state."""
    grads = find("selective_scan", backend).backward(x, step, decay, write, read, state, grad_y, grad_state)
    given = (x, step, decay, write, read, grad_state if state is None else state)
    dx, ds, dd, dw, dr, d_state = (grad.to(one.dtype) for grad, one in zip(grads, given, strict=True))
    return dx, ds, dd, dw, dr, d_state


@backward.register_fake
def _(x, step, decay, write, read, state, grad_y, grad_state, backend):  # type: ignore[no-untyped-def]
    d_state = torch.empty_like(grad_state if state is None else state)
    return *(one.new_empty(one.shape) for one in (x, step, decay, write, read)), d_state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, grad_y: Tensor, grad_state: Tensor):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    *grads, d_state = backward(*tensors, grad_y, grad_state, ctx.backend)
    return *grads, None if tensors[5] is None else d_state, None


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
