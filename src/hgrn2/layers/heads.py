"""Heads of classifiers: the mean over tokens, a linear map to classes, and the comparison of two sequences."""

import torch
from torch import Tensor, nn

from hgrn2.layers.norm import Norm
from hgrn2.ops.backend import work_dtype


def mean_pool(x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """[B,T,D] -> [B,D], the mean over tokens (those whose `padding_mask` [B,T] is True), summed in float32.

    A sequence of which nothing is kept has mean 0.
    """
    wide = x.to(work_dtype(x.dtype))
    if padding_mask is None:
        return wide.mean(1).to(x.dtype)
    total = wide.masked_fill(~padding_mask.unsqueeze(-1), 0).sum(1)  # not a product: padding may hold anything, NaN too
    return (total / padding_mask.sum(1, keepdim=True).clamp_min(1)).to(x.dtype)


class PoolHead(nn.Module):
    """Features [B,T,D] -> logits [B,classes]: mean, norm where one is given, linear map with a bias."""

    def __init__(self, width: int, classes: int, norm: Norm | None) -> None:
        super().__init__()
        self.norm = norm
        self.proj = nn.Linear(width, classes)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Logits [B,classes]."""
        pooled = mean_pool(x, padding_mask)
        return self.proj(pooled if self.norm is None else self.norm(pooled))


class PairHead(nn.Module):
    """Features of two sequences each, [B,2,T,D] -> logits [B,classes] of their relation, such as match or no match.

    With u and v the means of the two, classes = W₂ gelu(W₁ [u, v, u ⊙ v, u - v]): each by itself, where they agree and
    where they differ.
    """

    def __init__(self, width: int, classes: int, norm: Norm | None) -> None:
        super().__init__()
        self.norm = norm
        self.hidden = nn.Linear(4 * width, width)
        self.proj = nn.Linear(width, classes)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Logits [B,classes]; padding_mask [B,2,T]."""
        pooled = mean_pool(x.flatten(0, 1), None if padding_mask is None else padding_mask.flatten(0, 1))
        pooled = pooled if self.norm is None else self.norm(pooled)
        u, v = pooled.unflatten(0, (-1, 2)).unbind(1)
        return self.proj(nn.functional.gelu(self.hidden(torch.cat((u, v, u * v, u - v), -1))))
