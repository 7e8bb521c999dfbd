"""The gated unit as a custom operator of PyTorch; its gradient can be differentiated again."""

import torch
from torch import Tensor

from hgrn2.ops.backend import find
from hgrn2.ops.operator import operator


@operator("gated_unit")
def forward(x: Tensor, activation: str, backend: str) -> Tensor:
    """y."""
    return find("gated_unit", backend).forward(x, activation)


@forward.register_fake
def _(x, activation, backend):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(x)


def _autograd(ctx, grad):  # type: ignore[no-untyped-def]
    (x,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # someone will differentiate the gradient
        return _differentiable(x, ctx.activation, grad), None, None
    return find("gated_unit", ctx.backend).backward(x, ctx.activation, grad), None, None


def _differentiable(x: Tensor, activation: str, grad: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    if activation == "none":
        return torch.cat((grad * value, grad * gate), -1)
    up, down = gate.sigmoid(), (-gate).sigmoid()
    return torch.cat((grad * value * (up + gate * up * down), grad * gate * up), -1)


forward.register_autograd(_autograd, setup_context=_setup_context)
