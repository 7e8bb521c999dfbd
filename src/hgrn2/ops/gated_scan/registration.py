"""The element-wise scan as a custom operator of PyTorch; see hgru2/registration.py, whose shape this follows."""

from typing import Any

import torch
from torch import Tensor

from hgrn2.ops.backend import find, work_dtype
from hgrn2.ops.operator import operator


@operator("gated_scan")
def forward(
    x: Tensor, f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, final state, carries): see `backends`."""
    return find("gated_scan", backend).forward(x, f, state, cu_seqlens, reverse)


def _carries(x: Tensor, backend: str) -> Any:
    chosen: Any = find("gated_scan", backend)
    return chosen.carries(x)


@forward.register_fake
def _(x, f, state, cu_seqlens, reverse, backend):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    work, carries = work_dtype(x.dtype), _carries(x, backend)
    final = x.new_empty((sequences, x.shape[2]), dtype=work)
    h = x.new_empty(x.shape, dtype=work if carries is None else x.dtype)
    return h, final, x.new_empty(0 if carries is None else carries, dtype=work)


@operator("gated_scan_backward")
def backward(
    x: Tensor, f: Tensor, kept: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, grad_h: Tensor,
    grad_state: Tensor, reverse: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, f and the initial state; `kept` is the forward's h, or its carries where there are any."""
    dx, df, d_start = find("gated_scan", backend).backward(x, f, kept, state, cu_seqlens, grad_h, grad_state, reverse)
    d_state = d_start if state is None else d_start.to(state.dtype)
    return dx.reshape(x.shape).to(x.dtype), df.reshape(f.shape).to(f.dtype), d_state


@backward.register_fake
def _(x, f, kept, state, cu_seqlens, grad_h, grad_state, reverse, backend):
    d_state = torch.empty_like(grad_state) if state is None else torch.empty_like(state)
    return x.new_empty(x.shape), f.new_empty(f.shape), d_state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, f, state, cu_seqlens, *ctx.options = inputs
    h, _, carries = output
    kept = h if _carries(x, ctx.options[1]) is None else carries
    ctx.save_for_backward(x, f, kept, state, cu_seqlens)


def _autograd(ctx, grad_h: Tensor, grad_state: Tensor, _):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    dx, df, d_state = backward(*tensors, grad_h, grad_state, *ctx.options)
    return dx, df, None if tensors[3] is None else d_state, None, None, None


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
