"""Norms: four over the last axis, as published HGRN variants use them, and one over the batch; float32 inside."""

import torch
from torch import Tensor, nn

from hgrn2.layers.config import NormKind
from hgrn2.layers.reading import learns
from hgrn2.ops.backend import work_dtype
from hgrn2.ops.rms_norm import rms_norm

MOMENTUM = 0.1
"""Share of a step's statistics in the running ones of a batch norm."""


class Norm(nn.Module):
    """One of five norms of [..., D], or none.

    rms: x / sqrt(mean x² + eps) · weight (flash-linear-attention); simple_rms: the same without a weight (hgru2's
    language model); layer: LayerNorm with weight and bias (paper figure, HGRN1); head_rms: rms of each head by itself,
    with a weight over the full width; batch: BatchNorm, each channel by its mean and variance over all tokens of the
    batch, and by running ones in evaluation (Long Range Arena).
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, kind: NormKind, width: int, eps: float, *, heads: int = 1) -> None:
        super().__init__()
        self.kind, self.width, self.eps, self.heads = kind, width, eps, heads
        self.weight = nn.Parameter(torch.empty(width)) if kind not in ("simple_rms", "none") else None
        self.bias = nn.Parameter(torch.empty(width)) if kind in ("layer", "batch") else None
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(width) if kind == "batch" else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight one, bias zero; running mean zero and variance one."""
        for tensor in (self.weight, self.running_var):
            if tensor is not None:
                nn.init.ones_(tensor)
        for tensor in (self.bias, self.running_mean):
            if tensor is not None:
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """[..., D] -> [..., D] in x's dtype; a batch norm leaves tokens whose `padding_mask` [...] is False out of its
        statistics, the others look at one token at a time and need no mask."""
        if self.kind == "none":
            return x
        if self.kind == "batch":
            return self._batch(x, padding_mask)
        if self.kind == "layer":
            return nn.functional.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        if self.kind == "head_rms":
            assert self.weight is not None
            grouped = rms_norm(x.unflatten(-1, (self.heads, -1)), eps=self.eps)
            return grouped.flatten(-2) * self.weight.to(x.dtype)
        return rms_norm(x, None if self.weight is None else self.weight.to(x.dtype), eps=self.eps)

    def _batch(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        assert self.weight is not None
        assert self.bias is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        work = work_dtype(x.dtype)
        mean, var = self.running_mean.to(work), self.running_var.to(work)
        if learns(self):
            rows, kept = (
                x.to(work).flatten(0, -2),
                None if padding_mask is None else padding_mask.flatten().unsqueeze(-1),
            )
            if kept is None:
                count = torch.full((), float(rows.shape[0]), dtype=work, device=x.device)
                mean, var = rows.mean(0), rows.var(0, correction=0)
            else:
                count = kept.sum().to(work).clamp_min(1)
                mean = rows.masked_fill(~kept, 0).sum(0) / count
                var = (rows - mean).masked_fill(~kept, 0).square().sum(0) / count
            self._remember(mean.detach(), var.detach() * count / (count - 1).clamp_min(1))
        scale = self.weight.to(work) * (var + self.eps).rsqrt()
        return ((x.to(work) - mean) * scale + self.bias.to(work)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics; the variance is the unbiased one, as PyTorch's BatchNorm has it."""
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)
        self.running_var.lerp_(var.to(self.running_var.dtype), MOMENTUM)
