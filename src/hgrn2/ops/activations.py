"""The activations that published versions put on i_t and o_t, with the slopes that explicit backwards need."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.settings import shown

NAMES = ("none", "silu", "sigmoid")


def name_of(activation: str | None) -> str:
    """The canonical name; None means none."""
    name = "none" if activation is None else activation
    if not isinstance(name, str) or name not in NAMES:
        raise UserError(f"activation {shown(activation)} is unknown; choose one of {', '.join(NAMES)}")
    return name


def activate(x: Tensor, name: str) -> Tensor:
    """x, x σ(x) or σ(x)."""
    if name == "none":
        return x
    return torch.nn.functional.silu(x) if name == "silu" else x.sigmoid()


def slope(x: Tensor, name: str) -> Tensor:
    """d activate(x) / dx; σ(x)σ(-x) instead of y(1-y), which is 0 too early."""
    if name == "none":
        return torch.ones_like(x)
    up, down = x.sigmoid(), (-x).sigmoid()
    return up * (1 + x * down) if name == "silu" else up * down
