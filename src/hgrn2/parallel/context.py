"""Context parallelism: the processes of a group hold a slice of every sequence each, and mixers compute as if whole.

`sequence_parallel(model, group)` exchanges what mixers compute along the sequence (`layers/operators.py`); everything
else in a block looks at one token at a time. Scans pass states (`scan.py`), the short convolution passes the last
inputs, attention gathers keys and values. With packed documents every process is given the offsets of the whole row.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from hgrn2.errors import UserError
from hgrn2.layers.attention import Attention, scaled_dot_product, windowed
from hgrn2.layers.block import Block
from hgrn2.layers.operators import Operators
from hgrn2.layers.short_conv import short_conv
from hgrn2.parallel import scan
from hgrn2.parallel.collectives import Group, all_gather, connected, gathered, untraced
from hgrn2.parallel.config import refuse_context
from hgrn2.parallel.slices import Slice, slice_of

QUERIES = 512
"""Of a slice with padding that look at the keys side by side: their mask is so many rows."""


class SlicedOperators(Operators):
    """Of sequences of which this process has a slice."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rank, self.ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self._known: tuple[Tensor | None, Slice] | None = None

    def __deepcopy__(self, memo: Any) -> "SlicedOperators":
        return self  # a copied model works in the same group

    def slice(self, x: Tensor, cu_seqlens: Tensor | None) -> Slice:
        """The slice that x [B,T,...] is. Offsets are read once, however many layers ask for theirs: on a GPU that
        waits for it."""
        if cu_seqlens is None:
            return slice_of(self.rank, self.ranks, x.shape[1], None)
        if self._known is None or self._known[0] is not cu_seqlens or self._known[1].tokens != x.shape[1]:
            self._known = cu_seqlens, slice_of(self.rank, self.ranks, x.shape[1], cu_seqlens)
        return self._known[1]

    @untraced
    def hgru2(self, *tensors: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `ops.hgru2`."""
        return self._scan(scan.hgru2, tensors, **options)

    @untraced
    def gated_outer_scan(self, *tensors: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `ops.gated_outer_scan`."""
        return self._scan(scan.gated_outer_scan, tensors, **options)

    @untraced
    def gated_scan(self, *tensors: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `ops.gated_scan`."""
        return self._scan(scan.gated_scan, tensors, **options)

    def _scan(
        self, make: Any, tensors: tuple[Any, ...], *, state: Tensor | None = None, cu_seqlens: Tensor | None = None,
        output_final_state: bool = True, **options: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        part = self.slice(tensors[0], cu_seqlens)
        made = make(*tensors, **options)
        return scan.sliced(made, part, self.group, state, output_final_state=output_final_state)

    @untraced
    def short_conv(self, *tensors: Any, output_state: bool) -> tuple[Tensor, Tensor | None]:
        """As `layers.short_conv`."""
        x, weight, past, cu_seqlens, padding_mask = tensors
        if weight is None:
            return x, None
        part, taps = self.slice(x, cu_seqlens), weight.shape[-1] - 1
        own = part.own(past)
        sent = self._sent_inputs(x, padding_mask, part, taps, own)
        arriving = x.new_zeros(sent.shape[1], taps, x.shape[2])
        for one in sent[: part.rank]:
            arriving = _pushed(arriving, one[..., :-1], one[:, 0, -1].detach().long())
        start = own
        if part.enters:
            rows = x.shape[0] if part.documents is None else len(part.documents)
            rest = own if own is not None else x.new_zeros(rows, taps, x.shape[2])
            start = arriving if part.documents is None else torch.cat((arriving, rest[1:].to(arriving.dtype)))
        y, final = short_conv(x, weight, start, part.cu_seqlens, padding_mask, output_state=output_state)
        count, y = None if past is None else len(past), connected(y, sent)
        return y, scan.ended(final, part, self.group, count) if final is not None else None

    def _sent_inputs(
        self, x: Tensor, padding_mask: Tensor | None, part: Slice, taps: int, own: Tensor | None
    ) -> Tensor:
        """Of every process the last W-1 inputs of the sequences that leave its slice, and how many of them are its own
        [R,B or 1,W-1,D+1]."""
        last = slice(part.last_begin if part.leaves else 0, part.tokens)
        tail, count = last_inputs(x[:, last], None if padding_mask is None else padding_mask[:, last], taps)
        if not part.through:  # what was before does not matter: the sequences begin here
            begun = None if part.enters and part.documents is None else own
            if begun is not None:
                tail = _pushed(begun if part.documents is None else begun[-1:], tail, count)
            count = torch.full_like(count, taps)
        return gathered(torch.cat((tail, count[:, None, None].expand(-1, taps, 1).to(tail.dtype)), -1), self.group)

    @untraced
    def attend(
        self, attention: Attention, qkv: Tensor, *, cu_seqlens: Tensor | None, state: Any, padding_mask: Tensor | None,
        output_state: bool,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """As `Attention.attend`, without a state: every process gathers all keys and values.

        Raises:
            UserError: a state given or asked for.
        """
        if state is not None or output_state:
            raise UserError("attention over slices of a sequence carries no state: call with output_state=False")
        part = self.slice(qkv, cu_seqlens)
        kept = None if padding_mask is None else all_gather(padding_mask, self.group).transpose(0, 1).flatten(1)
        places, first = _places(part, qkv, cu_seqlens, kept)
        here = slice(part.rank * part.tokens, (part.rank + 1) * part.tokens)
        q, k, v = attention.turned(qkv, places[:, here])
        both = gathered(torch.stack((k, v), 2), self.group).transpose(0, 1).flatten(1, 2)
        k, v = both[:, : here.stop].unbind(2)
        window = attention.config.window
        if kept is not None:
            return _padded(q, k, v, places, first, kept, window), None
        if part.documents is None or part.cu_seqlens is None:
            return _last(q, k, v, window), None
        outputs, ends = [], part.cu_seqlens.tolist()
        for number, (a, b) in enumerate(pairwise(ends)):
            before = part.place if number == 0 and part.enters else 0
            keys = slice(here.start + a - before, here.start + b)
            outputs.append(_last(q[:, a:b], k[:, keys], v[:, keys], window))
        return torch.cat(outputs, 1), None


def last_inputs(x: Tensor, padding_mask: Tensor | None, taps: int) -> tuple[Tensor, Tensor]:
    """The last `taps` inputs that are kept of x [B,T,D], with zeros before them [B,taps,D], and their number [B]."""
    if padding_mask is None:
        found = min(taps, x.shape[1])
        tail = nn.functional.pad(x[:, x.shape[1] - found :], (0, 0, taps - found, 0))
        return tail, torch.full((x.shape[0],), found, device=x.device)
    from_end = padding_mask.flip(1).cumsum(1).flip(1)
    wanted = torch.arange(taps, 0, -1, device=x.device)[:, None]
    chosen = padding_mask.unsqueeze(1) & (from_end.unsqueeze(1) == wanted)  # [B,taps,T]
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    picked = x[rows, chosen.to(torch.uint8).argmax(-1)]
    return picked.masked_fill(~chosen.any(-1, keepdim=True), 0), from_end[:, 0].clamp_max(taps)


def _pushed(before: Tensor, tail: Tensor, count: Tensor) -> Tensor:
    """The last W-1 of `before` [B,W-1,D] and the last `count` [B] of `tail` [B,W-1,D] behind it."""
    taps = tail.shape[1]
    both = torch.cat((before.to(tail.dtype), tail), 1)
    place = torch.arange(taps, device=tail.device) + count[:, None]
    place = torch.where(place < taps, place, torch.arange(taps, device=tail.device) + taps)
    return both.gather(1, place.unsqueeze(-1).expand(-1, -1, tail.shape[2]))


def _places(part: Slice, qkv: Tensor, cu_seqlens: Tensor | None, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Where each token of the whole sequences stands in its own [1 or B,R·T], padding not counted; and where in the row
    its document begins [R·T], with packed documents."""
    token = torch.arange(part.ranks * part.tokens, device=qkv.device)
    first = None
    if cu_seqlens is not None:
        offsets = cu_seqlens.to(torch.int64)
        first = offsets[torch.searchsorted(offsets, token, right=True) - 1]
    if kept is None:
        return (token if first is None else token - first).unsqueeze(0), first
    count = kept.cumsum(1)
    if first is not None:
        count = count - nn.functional.pad(count, (1, 0))[:, first]
    return (count - 1).clamp_min(0), first


def _last(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of the last T of S tokens, q [B,T,H,n], k, v [B,S,H,n]."""
    queries, keys = q.shape[1], k.shape[1]
    if not queries:
        return q
    if 0 < window < keys:
        return windowed(q, k, v, window)
    if queries == keys:
        return scaled_dot_product(q, k, v, None, causal=queries > 1)
    return scaled_dot_product(q, k, v, causal_lower_right(queries, keys) if queries > 1 else None)


def _padded(q: Tensor, k: Tensor, v: Tensor, places: Tensor, first: Tensor | None, kept: Tensor, window: int) -> Tensor:
    """Attention with padding: a query sees the tokens of its document up to itself that are kept."""
    keys = torch.arange(k.shape[1], device=q.device)
    begin, outputs = k.shape[1] - q.shape[1], []
    for part in q.split(QUERIES, 1):
        rows = torch.arange(begin, begin + part.shape[1], device=q.device)
        seen = (keys <= rows[:, None]) & kept[:, None, : len(keys)]
        if first is not None:
            seen = seen & (first[: len(keys)] == first[rows][:, None])
        if window:
            seen = seen & (places[:, None, : len(keys)] > places[:, rows, None] - window)
        seen = seen | (~kept[:, rows, None] & (keys == rows[:, None]))  # of a query without any key there is no softmax
        outputs.append(scaled_dot_product(part, k, v, seen.unsqueeze(1)))
        begin += part.shape[1]
    return torch.cat(outputs, 1)


def sequence_parallel(model: nn.Module, group: Group) -> None:
    """Let every mixer of a model work on slices of its sequences, in place.

    Raises:
        UserError: a mixer that reads in another direction than forward, or of a kind that is not offered.
    """
    operators = SlicedOperators(group)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        refuse_context(block.mixer.config)
    for block in blocks:
        block.mixer.operators = operators
