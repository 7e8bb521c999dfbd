"""Lower bounds of the forget gate: learned, one per channel, rising with depth.

With Γ [L,D] learned and P = softmax(Γ) over layers, the lower bound of layer l is

    inclusive:  γ_l = Σ_{1≤i≤l} P_i     (language models: fairseq code of HGRN, hgru2, flash-linear-attention)
    exclusive:  γ_l = Σ_{0≤i<l} P_i     (formula of HGRN's README; images and Long Range Arena)

Both are 0 at the first layer and l/L at the uniform start; they differ in which row of P is never used.
"""

import torch
from torch import Tensor

from hgrn2.layers.config import LowerBoundKind
from hgrn2.ops.backend import work_dtype
from hgrn2.ops.hgru2.chunked import gates


def lower_bounds(raw: Tensor, kind: LowerBoundKind) -> Tensor:
    """Γ [L,D] -> γ [L,D] in float32 (float64 for float64), rising from 0 and below 1; a running sum: nothing cancels.

    Where one row of Γ outweighs the unused one by more than the dtype resolves, the sum rounds to 1 or above it, and a
    gate could then grow its state; the largest number below 1 takes its place.
    """
    share = raw.to(work_dtype(raw.dtype)).softmax(0)
    used = share[1:] if kind == "inclusive" else share[:-1]
    below_one = 1 - torch.finfo(share.dtype).eps / 2
    return torch.cat((torch.zeros_like(share[:1]), used.cumsum(0).clamp(max=below_one)))


def log_forget(logits: Tensor, lower_bound: Tensor | None) -> Tensor:
    """ln(γ + (1-γ) σ(logits)) [...,D] in float32; γ [D], or None for no lower bound."""
    logits = logits.float()
    return gates(logits, None if lower_bound is None else lower_bound.float()).log_forget
