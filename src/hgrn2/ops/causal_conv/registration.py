"""The short convolution as a custom operator of PyTorch, for the backends with kernels of their own."""

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.operator import operator
from hgrn2.ops.sequences import offsets_of


@operator("causal_conv")
def forward(
    x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, backend: str = "native"
) -> tuple[Tensor, Tensor]:
    """(y, last inputs), both in the working dtype; triton gives y in x's."""
    if backend == "triton":
        from hgrn2.ops.causal_conv import triton

        return triton.forward(x, weight, state, cu_seqlens)
    from hgrn2.ops.native import call

    work = work_dtype(x.dtype)
    offsets = offsets_of(cu_seqlens, x.shape[0], x.shape[1])
    x_work, taps = x.to(work).contiguous(), weight.to(work).contiguous()
    start = None if state is None else state.to(work).contiguous()
    y = torch.empty_like(x_work)
    final = x_work.new_empty(offsets.numel() - 1, weight.shape[1] - 1, x.shape[2])
    call.elementwise("conv_forward", work, offsets, x.shape[2], (x_work, taps, start, y, final), width=weight.shape[1])
    return y, final


@forward.register_fake
def _(x, weight, state, cu_seqlens, backend="native"):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    work = work_dtype(x.dtype)
    final = x.new_empty((sequences, weight.shape[1] - 1, x.shape[2]), dtype=work)
    return x.new_empty(x.shape, dtype=x.dtype if backend == "triton" else work), final


@operator("causal_conv_backward")
def backward(
    x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, grad_y: Tensor, grad_state: Tensor,
    backend: str = "native",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and the state."""
    if backend == "triton":
        from hgrn2.ops.causal_conv import triton

        dx, d_weight, d_start = triton.backward(x, weight, state, cu_seqlens, grad_y, grad_state)
        return dx, d_weight, d_start if state is None else d_start.to(state.dtype)
    from hgrn2.ops.native import call

    work, width = work_dtype(x.dtype), weight.shape[1]
    offsets = offsets_of(cu_seqlens, x.shape[0], x.shape[1])
    x_work, taps, dy = (y.to(work).contiguous() for y in (x, weight, grad_y))
    start = None if state is None else state.to(work).contiguous()
    grad_state = grad_state.to(work).contiguous()
    dx, partial = torch.empty_like(x_work), x_work.new_empty(offsets.numel() - 1, x.shape[2], width)
    d_start = torch.zeros_like(grad_state)
    tensors = (x_work, taps, start, dy, grad_state, dx, partial, d_start)
    call.elementwise("conv_backward", work, offsets, x.shape[2], tensors, width=width)
    d_state = d_start if state is None else d_start.to(state.dtype)
    return dx.to(x.dtype), partial.sum(0).to(weight.dtype), d_state


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
