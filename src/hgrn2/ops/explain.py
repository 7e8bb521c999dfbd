"""Say which backend a call would run on, and why."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops import backend as backends
from hgrn2.ops.hgru2.chunked import known_bounded


def explain(op: str | Callable[..., Any], *args: Any, backend: str = "auto", **kwargs: Any) -> str:
    """One sentence: the operator, the backend that would run this very call, and why; nothing is computed.

    Example:
        >>> import torch, hgrn2
        >>> x = torch.zeros(1, 8, 64)
        >>> hgrn2.ops.explain("hgru2", x, x, x, heads=2, backend="chunked")
        'hgru2 on cpu float32 runs on chunked: asked for by name'
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in backends.REGISTRY:
        raise UserError(f"operator {name!r} is unknown; choose one of {', '.join(backends.REGISTRY)}")
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if not tensors:
        raise UserError("explain needs the tensors of the call")
    tensor, dual = tensors[0], backends.has_tangents(*tensors)
    place = f"{name} on {tensor.device.type} {str(tensor.dtype).removeprefix('torch.')}"
    given = dict(zip(_POSITIONS.get(name, ()), args, strict=False)) | kwargs
    keys, values = _head_sizes(name, given)
    state = given.get("state")
    if name == "hgru2_step" and state is not None:
        keys, values = state.shape[-2:]
        kind = given.get("i", tensor).dtype
        choice = backends.choose(
            tensor.device, backend, op=name, dtype=kind, keys=keys, values=values, state=state.dtype, forward_mode=dual
        )
        return f"{place} runs on {choice.backend}: {choice.why}"
    dtype = backends.widest(*(x for x in (given.get(key) for key in ("q", "f", "i")) if x is not None), tensor)
    batch = None
    if name == "hgru2" and keys and tensor.dim() == 3:
        cu = given.get("cu_seqlens")
        sequences = tensor.shape[0] if cu is None else cu.numel() - 1
        bounded = known_bounded(given.get("lower_bound"), keys, values)
        batch = backends.Batch(sequences, tensor.shape[1], given["heads"], bounded)
    options = {"keys": keys, "values": values, "batch": batch, "forward_mode": dual}
    choice = backends.choose(tensor.device, backend, op=name, dtype=dtype, **options)
    return f"{place} runs on {choice.backend}: {choice.why}"


_POSITIONS = {
    "hgru2": ("q", "f", "i", "lower_bound"),
    "hgru2_step": ("q", "f", "i"),
    "gated_outer_scan": ("q", "k", "v", "log_f"),
    "selective_scan": ("x", "step", "decay"),
}


def _head_sizes(name: str, given: dict[str, Any]) -> tuple[int, int]:
    """K and V of one head, 0 where the operator has no heads or the call does not say."""
    if name == "gated_outer_scan" and {"q", "v"} <= given.keys():
        return given["q"].shape[-1], given["v"].shape[-1]
    if name == "selective_scan" and "decay" in given:
        return given["decay"].shape[1], given.get("cu_seqlens") is not None
    heads = given.get("heads", 0)
    if name.startswith("hgru2") and heads and {"q", "i"} <= given.keys():
        return given["q"].shape[-1] // heads, given["i"].shape[-1] // heads
    return 0, 0
