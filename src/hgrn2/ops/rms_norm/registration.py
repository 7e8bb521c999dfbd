"""RMSNorm as a custom operator of PyTorch; its gradients can be differentiated again."""

import torch
from torch import Tensor

from hgrn2.ops.backend import find
from hgrn2.ops.operator import operator


@operator("rms_norm")
def forward(x: Tensor, weight: Tensor | None, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    """(y, factor of every row)."""
    return find("rms_norm", backend).forward(x, weight, eps)


@forward.register_fake
def _(x, weight, eps, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, ctx.eps, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def _autograd(ctx, grad, unused):  # type: ignore[no-untyped-def]
    x, weight, scale = ctx.saved_tensors
    if grad is None:
        return None, None, None, None
    if torch.is_grad_enabled():  # someone will differentiate the gradients
        dx, d_weight = _differentiable(x, weight, ctx.eps, grad)
    else:
        dx, d_weight = find("rms_norm", ctx.backend).backward(x, weight, scale, grad)
    return dx, d_weight, None, None


def _differentiable(x: Tensor, weight: Tensor | None, eps: float, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    inner = grad if weight is None else grad * weight
    dx = scale * (inner - x * scale.square() * (inner * x).mean(-1, keepdim=True))
    return dx, None if weight is None else (grad * x * scale).flatten(0, -2).sum(0) if x.dim() > 1 else grad * x * scale


forward.register_autograd(_autograd, setup_context=_setup_context)
