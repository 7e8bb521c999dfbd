"""transformers' causal loss without a tensor of all logits."""

import torch
from torch import Tensor

from hgrn2.ops.linear_cross_entropy import linear_cross_entropy

IGNORED = -100


def next_token_loss(features: Tensor, weight: Tensor, labels: Tensor, items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy in nats of label t+1 given the features at t.

    Args:
        features: [B,T,D].
        weight: the head's, [V,D].
        labels: [B,T]; -100 counts for nothing.
        items: divide the sum by this number (a batch cut in pieces); None: the mean.
    """
    targets = torch.nn.functional.pad(labels.to(features.device), (0, 1), value=IGNORED)[:, 1:].contiguous()
    mean = linear_cross_entropy(features, weight, targets, ignore_index=IGNORED)
    return mean if items is None else mean * (targets != IGNORED).sum() / items
