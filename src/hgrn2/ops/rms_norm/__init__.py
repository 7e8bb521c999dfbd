"""RMSNorm of rows: one pass over memory each way on a CPU, PyTorch's own elsewhere."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_tensors
from hgrn2.ops.backend import check_floating, choose, find, register
from hgrn2.ops.rms_norm import registration
from hgrn2.ops.rms_norm.backends import BACKENDS
from hgrn2.ops.rowwise import seen_by_others

register("rms_norm", BACKENDS)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, backend: str = "auto") -> Tensor:
    """y = x / sqrt(mean(x²) + eps) · weight over the last axis.

    Args:
        x: [...,D].
        weight: [D] in x's dtype; None is one.
        eps: added to the mean square.
        backend: auto, native (C++ on a CPU, float32 and float64) or reference (`torch.nn.functional.rms_norm`, which
            `auto` takes wherever a compiler, an exporter or a function transform looks on).

    Returns:
        y [...,D] in x's dtype.

    Raises:
        UserError: shapes that do not fit, a backend that cannot serve the call.
    """
    tensors = {"x": x} if weight is None else {"x": x, "weight": weight}
    check_tensors(**tensors)
    check_floating(**tensors)
    if x.dim() < 1 or (weight is not None and (weight.shape != x.shape[-1:] or weight.dtype != x.dtype)):
        found = "" if weight is None else f" and {list(weight.shape)} {weight.dtype}"
        raise UserError(f"x must be [...,D] and weight [D] in its dtype; got {list(x.shape)} {x.dtype}{found}")
    if backend == "auto" and (not x.numel() or seen_by_others(x, weight)):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    chosen = find("rms_norm", choose(x.device, backend, op="rms_norm", dtype=x.dtype).backend)
    return chosen.forward(x, weight, eps) if chosen.composed else registration.forward(x, weight, eps, chosen.name)[0]
