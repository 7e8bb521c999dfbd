"""Norms over the last axis. Published HGRN variants use four; all compute in float32 inside PyTorch's own functions."""

import torch
from torch import Tensor, nn

from hgrn2.layers.config import NormKind


class Norm(nn.Module):
    """One of four norms over the width D.

    rms: x / sqrt(mean x² + eps) · weight (flash-linear-attention); simple_rms: the same without a weight (hgru2's
    language model); layer: LayerNorm with weight and bias (paper figure, HGRN1); head_rms: rms of each head by itself,
    with a weight over the full width.
    """

    def __init__(self, kind: NormKind, width: int, eps: float, *, heads: int = 1) -> None:
        super().__init__()
        self.kind, self.width, self.eps, self.heads = kind, width, eps, heads
        self.weight = nn.Parameter(torch.empty(width)) if kind != "simple_rms" else None
        self.bias = nn.Parameter(torch.empty(width)) if kind == "layer" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight one, bias zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D] in x's dtype."""
        if self.kind == "layer":
            return nn.functional.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        if self.kind == "head_rms":
            grouped = x.unflatten(-1, (self.heads, -1))
            assert self.weight is not None
            return nn.functional.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2) * self.weight.to(
                x.dtype
            )
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return nn.functional.rms_norm(x, (self.width,), weight, self.eps)
