"""The short convolution as a custom operator of PyTorch, for the backends with kernels of their own."""

import torch
from torch import Tensor

from hgrn2.ops.backend import find, work_dtype
from hgrn2.ops.operator import operator


@operator("causal_conv")
def forward(
    x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, backend: str = "native"
) -> tuple[Tensor, Tensor]:
    """(y, last inputs), the latter in the working dtype."""
    return find("causal_conv", backend).forward(x, weight, state, cu_seqlens)


@forward.register_fake
def _(x, weight, state, cu_seqlens, backend="native"):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    work = work_dtype(x.dtype)
    final = x.new_empty((sequences, weight.shape[1] - 1, x.shape[2]), dtype=work)
    return x.new_empty(x.shape), final


@operator("causal_conv_backward")
def backward(
    x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, grad_y: Tensor, grad_state: Tensor,
    backend: str = "native",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and the state."""
    tensors = (x, weight, state, cu_seqlens, grad_y, grad_state)
    dx, d_weight, d_start = find("causal_conv", backend).backward(*tensors)
    return dx, d_weight, d_start if state is None else d_start.to(state.dtype)


@backward.register_fake
def _(x, weight, state, cu_seqlens, grad_y, grad_state, backend="native"):
    d_state = torch.empty_like(grad_state) if state is None else torch.empty_like(state)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, grad_y: Tensor, grad_state: Tensor):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    dx, d_weight, d_state = backward(*tensors, grad_y, grad_state, ctx.backend)
    return dx, d_weight, None if tensors[2] is None else d_state, None, None


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
