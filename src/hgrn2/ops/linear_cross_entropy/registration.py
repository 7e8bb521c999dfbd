"""Head and loss as a custom operator of PyTorch, so that `torch.compile` keeps the loop over chunks as one call."""

import importlib.util
import os

import torch
from torch import Tensor

from hgrn2.ops.backend import constant_when_compiled, work_dtype
from hgrn2.ops.linear_cross_entropy import chunked
from hgrn2.ops.operator import operator


@constant_when_compiled
def has_triton() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run on the CPU, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@operator("linear_cross_entropy")
def forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, products: torch.dtype,
    gradients: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(mean loss, gradient of hidden, gradient of weight); the gradients are empty unless asked for."""
    rows = chunked.rows
    if backend == "triton":
        from hgrn2.ops.linear_cross_entropy import triton

        rows = triton.rows
    return chunked.forward(hidden, weight, targets, ignore_index, label_smoothing, products, gradients, rows)


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
