"""A vocabulary that the processes of a tensor group share: embedding, head and loss over V/R classes each.

    x_t = Σ over processes of E[token_t], zero where the token is another's
    loss = log Σ exp z - z[target]     with the largest z, Σ exp z and z[target] exchanged: three numbers for each token

Logits of all classes are put together for those alone who ask for them, as measurements do.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.linear_cross_entropy import chunked
from hgrn2.parallel.collectives import Group, all_gather, all_sum, copied, reduced

IGNORED = -100
"""The target that does not count."""


class Shared:
    """What embedding and head have in common: the classes from `begin` on, as many as `weight` [V/R,D] has rows."""

    group: Group
    begin: int
    weight: Any

    def logits(self, features: Tensor) -> Tensor:
        """Features [...,D] -> logits [...,V] of the whole vocabulary."""
        own = nn.functional.linear(copied(features, self.group), self.weight)
        return _Joined.apply(own, self.group)  # pyright: ignore[reportReturnType]

    def cross_entropy(self, features: Tensor, targets: Tensor) -> Tensor:
        """Features [...,D], targets [...] of the whole vocabulary -> mean nats/token, alike in every process; logits
        exist for some thousand tokens at a time, as in `linear_cross_entropy`."""
        rows, products = features.flatten(0, -2), features.dtype
        if torch.is_autocast_enabled(features.device.type) and products != torch.float64:
            products = torch.get_autocast_dtype(features.device.type)
        needed = torch.is_grad_enabled()
        found: Any = _CrossEntropy.apply(
            copied(rows, self.group), self.weight, targets.flatten(), products, needed, self.begin, self.group
        )
        return found


class SharedEmbedding(Shared, nn.Embedding):
    """Some of the rows of an embedding, and of a head tied to it."""

    def forward(self, input: Tensor) -> Tensor:
        """Tokens [...] -> [...,D]."""
        own = input - self.begin
        inside = (own >= 0) & (own < self.weight.shape[0])
        rows = nn.functional.embedding(own.where(inside, 0), self.weight)
        return reduced(rows.masked_fill(~inside.unsqueeze(-1), 0), self.group)


class SharedHead(Shared, nn.Linear):
    """Some of the rows of a head."""

    def forward(self, input: Tensor) -> Tensor:
        """[...,D] -> [...,V]."""
        return self.logits(input)


def rows_of_part(
    begin: int, group: Group, logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, gradients: bool
) -> Tensor:
    """`chunked.Rows` of this process's classes: loss of each row, of all classes."""
    assert smoothing == 0
    counts, own = targets != ignore_index, targets - begin
    inside = counts & (own >= 0) & (own < logits.shape[1])
    place = own.where(inside, 0).unsqueeze(1)
    z = logits.to(work_dtype(logits.dtype))
    largest = z.amax(1)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    z = z - largest.unsqueeze(1)
    total, wanted = all_sum(torch.stack((z.exp().sum(1), z.gather(1, place).squeeze(1).where(inside, 0))), group)
    if gradients:
        share = z.exp_() / total.unsqueeze(1)
        share.scatter_add_(1, place, -inside.unsqueeze(1).to(share.dtype))
        logits.copy_(share.masked_fill_(~counts.unsqueeze(1), 0))
    return (total.log() - wanted).where(counts, 0)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, products: torch.dtype, needed: bool, begin: int,
        group: Group,
    ) -> Tensor:  # fmt: skip
        part = partial(rows_of_part, begin, group)
        loss, d_rows, d_weight = chunked.forward(rows, weight, targets, IGNORED, 0.0, products, needed, part)
        ctx.save_for_backward(d_rows, d_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        d_rows, d_weight = ctx.saved_tensors
        return (d_rows * grad).to(d_rows.dtype), (d_weight * grad).to(d_weight.dtype), *([None] * 5)


class _Joined(torch.autograd.Function):
    """[...,V/R] of every process -> [...,V], with which all go on alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        ctx.rank, ctx.ranks = dist.get_rank(group), dist.get_world_size(group)
        return torch.cat(all_gather(x, group).unbind(0), -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad.chunk(ctx.ranks, -1)[ctx.rank].contiguous(), None
