"""transformers' causal loss without a tensor of all logits, where that is the same loss."""

from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from hgrn2.models.plain import is_product
from hgrn2.ops.linear_cross_entropy import linear_cross_entropy


def can_fuse(model: Any, features: Tensor, logits_to_keep: Any) -> bool:
    """Whether the loss is the library's over the head as a plain product, and may be computed without calling either.

    False for adapters, hooks, offloaded or quantised weights of the head (`is_product`), a loss function or a bias of
    one's own, and logits at chosen columns.
    """
    all_columns = isinstance(logits_to_keep, int) and logits_to_keep == 0
    return all_columns and model.loss_function is ForCausalLMLoss and is_product(model.lm_head, features)


def next_token_loss(
    features: Tensor, weight: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100, shift_labels: Tensor | None = None, **unused: Any,
) -> Tensor:  # fmt: skip
    """Cross-entropy in nats of label t+1 given the features at t; the arguments of transformers' `ForCausalLMLoss`.

    Args:
        features: [B,T,D].
        weight: the head's, [V,D].
        labels: [B,T].
        num_items_in_batch: divide the sum by this number (a batch cut in pieces): 0 where no label counts. None: the
            mean, which is then NaN, as the library's.
        ignore_index: labels that count for nothing.
        shift_labels: [B,T], the label of each place, in place of `labels` moved on by one.
        unused: what the library's loss passes over too.
    """
    if shift_labels is None:
        shift_labels = torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[:, 1:]
    targets = shift_labels.to(features.device).reshape(features.shape[:-1]).contiguous()
    mean = linear_cross_entropy(features, weight, targets, ignore_index=ignore_index)
    if num_items_in_batch is None:
        return mean
    count = (targets != ignore_index).sum()
    items = num_items_in_batch.to(mean.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
    return mean.where(count > 0, 0) * count / items
