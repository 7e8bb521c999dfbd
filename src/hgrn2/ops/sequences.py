"""Where sequences begin and end: every scan sees flattened tokens [B*T, ...] and the offsets of N sequences in them.

A batch [B, T] is N = B sequences of equal length; packed documents (`cu_seqlens`, B = 1) are N of any length, empty
ones included. `ChunkPlan` cuts them into chunks of C tokens for the chunked form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_tensors


def check_cu_seqlens(cu_seqlens: Tensor | None, batch: int) -> None:
    """Refuse boundaries that do not cover a batch of one sequence; reads no device memory."""
    if cu_seqlens is None:
        return
    check_tensors(cu_seqlens=cu_seqlens)
    if batch != 1:
        raise UserError(f"cu_seqlens needs packed documents with B = 1, not B = {batch}")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise UserError("cu_seqlens must be a vector of at least two int32 or int64 offsets")


def offsets_of(cu_seqlens: Tensor | None, batch: int, tokens: int) -> Tensor:
    """Offsets [N+1] int64 on the CPU of the sequences in flattened tokens [B*T]."""
    if cu_seqlens is None:
        return torch.arange(batch + 1, dtype=torch.int64) * tokens
    offsets = cu_seqlens.detach().to("cpu", torch.int64).contiguous()
    if offsets[0] != 0 or offsets[-1] != batch * tokens or bool((offsets.diff() < 0).any()):
        raise UserError(f"cu_seqlens must rise from 0 to the number of tokens ({batch * tokens})")
    return offsets


def documents(cu_seqlens: Tensor, tokens: int, state: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
    """The tokens of each packed document and its initial state, for loops over whole documents."""
    for n, (a, b) in enumerate(pairwise(offsets_of(cu_seqlens, 1, tokens).tolist())):
        yield slice(a, b), None if state is None else state[n : n + 1]


@dataclass(frozen=True)
class ChunkPlan:
    """N sequences cut into M chunks of C tokens, ordered so that the r-th chunks of all sequences lie side by side.

    Sequences are sorted by falling length; at rank r the first `active[r]` of them still have a chunk. A dense batch
    is the special case in which all are active at every rank.
    """

    chunk: int
    order: Tensor
    """[N] sequence numbers by falling length."""
    active: tuple[int, ...]
    source: Tensor
    """[M*C] flattened token in each chunk slot; padding slots repeat token 0."""
    padding: Tensor | None
    """[M*C] True where a slot holds no token; None when every slot does."""
    slot: Tensor
    """[B*T] chunk slot of each token."""

    def gather(self, x: Tensor) -> Tensor:
        """[B*T, H, n] -> [M, H, C, n], zeros in padding slots."""
        y = x.index_select(0, self.source)
        if self.padding is not None:
            y[self.padding] = 0
        return y.unflatten(0, (-1, self.chunk)).transpose(1, 2)

    def scatter(self, y: Tensor) -> Tensor:
        """[M, H, C, n] -> [B*T, H, n]."""
        return y.transpose(1, 2).flatten(0, 1).index_select(0, self.slot)

    def ranks(self) -> list[slice]:
        """The chunks of each rank, as slices of the M axis."""
        ends = torch.tensor((0, *self.active)).cumsum(0).tolist()
        return [slice(a, b) for a, b in pairwise(ends)]


def plan_chunks(offsets: Tensor, chunk: int, reverse: bool, device: torch.device) -> ChunkPlan:
    """Lay sequences out in chunks; with `reverse` each one is read from its last token to its first."""
    lengths = offsets.diff()
    order = lengths.argsort(descending=True, stable=True)
    counts = (lengths[order] + chunk - 1) // chunk
    ranks = int(counts[0]) if counts.numel() else 0
    active = tuple(int((counts > r).sum()) for r in range(ranks))
    begin, size = offsets[:-1][order], lengths[order]
    rank = torch.repeat_interleave(torch.arange(ranks), torch.tensor(active, dtype=torch.int64))
    which = torch.cat([torch.arange(n) for n in active]) if active else torch.empty(0, dtype=torch.int64)
    place = rank[:, None] * chunk + torch.arange(chunk)
    inside = place < size[which][:, None]
    place = size[which][:, None] - 1 - place if reverse else place
    source = torch.where(inside, begin[which][:, None] + place, 0).flatten()
    inside = inside.flatten()
    slot = torch.empty(int(offsets[-1]), dtype=torch.int64)
    slots = torch.arange(source.numel())
    slot[source[inside]] = slots[inside]
    padding = None if bool(inside.all()) else (~inside).to(device)
    return ChunkPlan(chunk, order.to(device), active, source.to(device), padding, slot.to(device))
