"""The gate of a gated linear unit: one half of a projection, activated, times the other half."""

from typing import get_args

from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_tensors
from hgrn2.ops.backend import check_floating, choose, find, register
from hgrn2.ops.gated_unit import registration
from hgrn2.ops.gated_unit.backends import BACKENDS, Activation, plain
from hgrn2.ops.rowwise import seen_by_others
from hgrn2.settings import shown

register("gated_unit", BACKENDS)


def gated_unit(x: Tensor, activation: Activation = "silu", *, backend: str = "auto") -> Tensor:
    """y = act(a) ⊙ b with [a, b] = x.

    Args:
        x: [...,2m]; the first half is activated.
        activation: none, silu or gelu.
        backend: auto, native (C++ on a CPU, float32 and float64, without gelu) or reference (plain PyTorch, which
            `auto` takes wherever a compiler, an exporter or a function transform looks on).

    Returns:
        y [...,m] in x's dtype.

    Raises:
        UserError: an odd last axis, an unknown activation, a backend that cannot serve the call.
    """
    check_tensors(x=x)
    check_floating(x=x)
    if activation not in get_args(Activation):
        raise UserError(f"activation {shown(activation)} is unknown; choose one of {', '.join(get_args(Activation))}")
    if x.dim() < 1 or x.shape[-1] % 2:
        raise UserError(f"x must be [...,2m]; got {list(x.shape)}")
    others = not x.numel() or activation == "gelu" or seen_by_others(x)
    if backend == "auto" and others:
        return plain(x, activation)
    chosen = find("gated_unit", choose(x.device, backend, op="gated_unit", dtype=x.dtype).backend)
    if activation == "gelu" and not chosen.composed:
        raise UserError(f"backend {chosen.name} cannot serve this call: it has no gelu")
    return chosen.forward(x, activation) if chosen.composed else registration.forward(x, activation, chosen.name)
