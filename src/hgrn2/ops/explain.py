"""Say which backend a call would run on, and why."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops import backend as backends

SCANS = ("hgru2", "gated_outer_scan", "gated_scan", "causal_conv")
STEPS = ("hgru2_step", "gated_outer_step", "gated_step", "causal_conv_step")


def explain(op: str | Callable[..., Any], *args: Any, backend: str = "auto", **kwargs: Any) -> str:
    """One sentence: the operator, the backend that would run this very call, and why; nothing is computed.

    Example:
        >>> import torch, hgrn2
        >>> x = torch.zeros(1, 8, 64)
        >>> hgrn2.ops.explain("hgru2", x, x, x, heads=2, backend="chunked")
        'hgru2 on cpu float32 runs on chunked: asked for by name'
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in SCANS + STEPS:
        raise UserError(f"operator {name!r} is unknown; choose one of {', '.join(SCANS + STEPS)}")
    tensor = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    if tensor is None:
        raise UserError("explain needs the tensors of the call")
    place = f"{name} on {tensor.device.type} {str(tensor.dtype).removeprefix('torch.')}"
    if name in STEPS and name != "hgru2_step":
        return f"{place} runs on chunked: one token needs no kernel of its own"
    state = kwargs.get("state")
    if name == "hgru2_step" and state is not None:
        choice = backends.choose_step(kwargs.get("i", args[2] if len(args) > 2 else tensor), state, backend)
    else:
        choice = backends.choose(tensor.device, backend)
    return f"{place} runs on {choice.backend}: {choice.why}"
