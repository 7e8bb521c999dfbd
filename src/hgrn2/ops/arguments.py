"""What every operator and model asks of its arguments before it computes: one clear line instead of a wrong number."""

from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.settings import shown

OPTIONAL = ("lower_bound", "state", "slots", "cu_seqlens", "padding_mask")


def check_tensors(**tensors: Any) -> None:
    """Refuse what is no dense tensor (None passes for `OPTIONAL` ones), and tensors on several devices."""
    places: dict[torch.device, str] = {}
    for name, x in tensors.items():
        if x is None and name in OPTIONAL:
            continue
        if not isinstance(x, Tensor):
            kind = type(x)
            hint = "; torch.from_numpy makes one" if kind.__module__ == "numpy" else ""
            raise UserError(f"{name} must be a tensor, not {kind.__module__}.{kind.__qualname__}{hint}")
        if x.layout != torch.strided or x.is_quantized:
            raise UserError(f"{name} must be a dense tensor, not {x.dtype} {x.layout}".replace("torch.", ""))
        places.setdefault(x.device, name)
    if len(places) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise UserError(f"the tensors of one call must be on one device; got {where}")


def extremes(x: Tensor) -> tuple[Any, Any] | None:
    """The least and the greatest value; None where looking would stop a GPU, and where a trace or `vmap` has none."""
    plain = type(x) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()
    if x.device.type != "cpu" or not plain or not x.numel():
        return None
    try:
        low, high = torch.aminmax(x.detach())
        return low.item(), high.item()
    except RuntimeError:
        return None


def check_lower_bound(lower_bound: Tensor | None) -> None:
    """Refuse lower bounds of a gate outside [0,1], with which it would grow its state or change its sign."""
    found = None if lower_bound is None else extremes(lower_bound)
    if found is not None and (found[0] < 0 or found[1] > 1):  # NaN passes, and what comes of it shows it
        bad = found[0] if found[0] < 0 else found[1]
        raise UserError(f"lower_bound has {bad:.6g}; lower bounds of a gate lie in [0, 1)")


def check_ids(ids: Tensor, size: int, what: str = "token id", whole: str = "the vocabulary of") -> None:
    """Refuse ids outside [0,size). On a GPU they are not looked at: PyTorch's own error stops them there."""
    found = extremes(ids)
    if found is not None and not 0 <= found[0] <= found[1] < size:
        raise UserError(f"{what} {found[1] if found[1] >= size else found[0]} is outside {whole} {size}")


def check_whole(value: Any, name: str, at_least: int = 1) -> None:
    """Refuse what is no whole number of at least so much."""
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    if not whole or value < at_least:
        raise UserError(f"{name} is {shown(value)}; it must be a whole number of at least {at_least}")


def check_scale(scale: Any) -> None:
    """Refuse a factor that is no finite number."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) < float("inf"):
        raise UserError(f"scale is {shown(scale)}; it must be a finite number")


def check_flags(**flags: Any) -> None:
    """Refuse what is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} is {shown(value)}; it must be True or False")
