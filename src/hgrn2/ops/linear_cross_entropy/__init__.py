"""Head and loss in one operator: the cross-entropy of `hidden @ weight.T` without a matrix of all logits."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_ids, check_tensors, extremes
from hgrn2.ops.backend import check_floating, choose, has_tangents, register
from hgrn2.ops.linear_cross_entropy import registration
from hgrn2.ops.linear_cross_entropy.backends import BACKENDS
from hgrn2.settings import shown

register("linear_cross_entropy", BACKENDS)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Mean over the tokens n whose target is not ignore_index, with z = hidden_n · weightᵀ over V classes:

        (1-ε) (logsumexp(z) - z[target_n]) + ε (logsumexp(z) - mean(z))

    Equals `cross_entropy(linear(hidden, weight), targets)`. Logits exist for a few thousand tokens at a time, in the
    precision of the product (the autocast dtype under autocast); softmax, loss and the sums over tokens are float32
    (float64 for float64). Both gradients are made on the way, so the backward is a product with one number: calling it
    twice works, second derivatives do not.

    Args:
        hidden: [..., D].
        weight: [V,D].
        targets: [...] int64, of hidden's shape without D.
        ignore_index: targets that do not count; where none counts the mean is NaN, as in PyTorch.
        label_smoothing: ε in [0,1).
        backend: auto, triton (the softmax of a chunk in one kernel; CUDA tensors) or chunked (plain PyTorch).

    Returns:
        A scalar, float32 (float64 for float64 inputs). On a GPU targets are not looked at beforehand: one outside the
        vocabulary is an error of PyTorch's, and NaN in the Triton kernel.

    Raises:
        UserError: shapes that do not fit, targets that are not int64 or outside the vocabulary, ε outside [0,1), an
            unknown backend, forward-mode derivatives.
    """
    _check(hidden, weight, targets, label_smoothing)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise UserError(f"ignore_index is {shown(ignore_index)}; it must be a whole number")
    check_targets(targets, weight.shape[0], ignore_index)
    if has_tangents(hidden, weight):
        raise UserError(
            "linear_cross_entropy has no forward-mode derivatives (jvp, jacfwd, linearize, dual numbers); "
            "cross_entropy(linear(hidden, weight), targets) has, as has LanguageModel.loss(method='full')"
        )
    rows = hidden.flatten(0, -2)
    products = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type) and products != torch.float64:
        products = torch.get_autocast_dtype(hidden.device.type)
    needed = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    chosen = choose(hidden.device, backend, op="linear_cross_entropy", dtype=hidden.dtype).backend
    loss, _, _ = registration.forward(
        rows, weight, targets.flatten(), ignore_index, label_smoothing, products, needed, chosen
    )
    return loss


def check_targets(targets: Tensor, classes: int, ignore_index: int = -100) -> None:
    """Refuse targets outside the vocabulary, where they can be looked at (see `extremes`)."""
    found = extremes(targets)
    if found is not None and not 0 <= found[0] <= found[1] < classes:  # seldom: those that do not count may lie there
        check_ids(targets[targets != ignore_index], classes, "target")


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> None:
    check_tensors(hidden=hidden, weight=weight, targets=targets)
    check_floating(hidden=hidden, weight=weight)
    if hidden.dim() < 2 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise UserError(f"hidden must be [...,D] and weight [V,D]; got {list(hidden.shape)} and {list(weight.shape)}")
    if targets.shape != hidden.shape[:-1] or targets.dtype != torch.int64:
        raise UserError(
            f"targets must be {list(hidden.shape[:-1])} int64; got {list(targets.shape)} "
            f"{str(targets.dtype).removeprefix('torch.')}"
        )
    if not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise UserError(f"label_smoothing is {shown(smoothing)}; it must be in [0, 1)")
