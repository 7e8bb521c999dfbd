"""Which part of each sequence a process has: R slices of equal length, one after the other.

Of B sequences [B,R·T] process r has tokens [B,r·T:(r+1)·T]. Of packed documents [1,R·T] it has the same slice of the
row, and the offsets given, those of the whole row, say where documents cross from one slice into the next.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.sequences import offsets_of


@dataclass(frozen=True)
class Slice:
    """The sequences of one process: B of them, or those documents of which it has tokens.

    Empty documents belong to one process each, so that all documents together are the documents of all processes.
    """

    rank: int
    ranks: int
    tokens: int
    """T, of this process."""
    enters: bool
    """The first sequence began before this slice (all of them in a batch)."""
    leaves: bool
    """The last sequence goes on after it (all of them in a batch)."""
    documents: range | None = None
    """Which of the packed documents; None in a batch."""
    cu_seqlens: Tensor | None = None
    """Their offsets in this slice."""
    first_end: int = 0
    """Tokens [0, first_end) are those of the first sequence."""
    last_begin: int = 0
    """Tokens [last_begin, T) are those of the last one."""
    place: int = 0
    """Of the first token, in its sequence."""

    @property
    def through(self) -> bool:
        """What enters the slice leaves it again."""
        return self.enters and self.leaves and (self.documents is None or len(self.documents) == 1)

    def own(self, x: Tensor | None) -> Tensor | None:
        """Those of the rows [N,...] of all documents that are this slice's; rows of a batch stay as they are."""
        return x if x is None or self.documents is None else x[self.documents.start : self.documents.stop]


def slice_of(rank: int, ranks: int, tokens: int, cu_seqlens: Tensor | None) -> Slice:
    """The slice of T tokens of process `rank` of `ranks`.

    Raises:
        UserError: offsets that do not cover R·T tokens.
    """
    begin, end = rank * tokens, (rank + 1) * tokens
    if cu_seqlens is None:
        return Slice(rank, ranks, tokens, rank > 0, rank < ranks - 1, first_end=tokens, place=begin)
    try:
        ends = offsets_of(cu_seqlens, 1, ranks * tokens)
    except UserError as error:
        raise UserError(f"{error}: the offsets are those of the {ranks} slices of {tokens} tokens together") from None
    first, last = (int(torch.searchsorted(ends, place, right=True)) - 1 for place in (begin, end - 1))
    enters, leaves = int(ends[first]) < begin, int(ends[last + 1]) > end
    place = begin - int(ends[first])
    if not enters:  # empty documents at the border belong to the slice behind it
        first = int(torch.searchsorted(ends, begin - 1, right=True)) if rank else 0
    if rank == ranks - 1:
        last = ends.numel() - 2
    local = (ends[first : last + 2] - begin).clamp(0, tokens)
    return Slice(
        rank, ranks, tokens, enters, leaves, range(first, last + 1), local.to(cu_seqlens.device),
        first_end=int(local[1]), last_begin=int(local[-2]), place=place,
    )  # fmt: skip
