"""Head and loss as a custom operator of PyTorch, so that `torch.compile` keeps the loop over chunks as one call."""

import torch
from torch import Tensor

from hgrn2.ops.backend import find, work_dtype
from hgrn2.ops.operator import operator


@operator("linear_cross_entropy")
def forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, products: torch.dtype,
    gradients: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(mean loss, gradient of hidden, gradient of weight); the gradients are empty unless asked for."""
    arguments = (hidden, weight, targets, ignore_index, label_smoothing, products, gradients)
    return find("linear_cross_entropy", backend).forward(*arguments)


@forward.register_fake
def _(hidden, weight, targets, ignore_index, label_smoothing, products, gradients, backend):  # type: ignore[no-untyped-def]
    loss = hidden.new_empty((), dtype=work_dtype(hidden.dtype))
    return loss, hidden.new_empty(hidden.shape if gradients else 0), weight.new_empty(weight.shape if gradients else 0)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)  # no zeros for the two outputs that are gradients themselves
    ctx.save_for_backward(*output[1:])


def _autograd(ctx, grad, *unused):  # type: ignore[no-untyped-def]
    d_hidden, d_weight = ctx.saved_tensors
    if grad is None:
        return (None,) * 8
    return (d_hidden * grad).to(d_hidden.dtype), (d_weight * grad).to(d_weight.dtype), *((None,) * 6)


forward.register_autograd(_autograd, setup_context=_setup_context)
