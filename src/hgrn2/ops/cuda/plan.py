"""How tokens are shared out: every block of threads scans one item, a stretch of tokens of one sequence.

A batch with many sequences and heads is one item per sequence. Where that would leave multiprocessors idle, sequences
are cut into segments whose states are joined by a small kernel. The choice depends on shapes alone, and packed
documents are laid out on the device, so the host never waits for it.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.gpu import processors
from hgrn2.ops.sequences import offsets_of

CHUNK = 64
_FIELDS = 8  # struct Item in problem.h: sequence, begin, tokens, first, last, chunk, unused x 2
_SEGMENT_COST = 1.6
"""Time of a scan in segments over that of a scan in one piece: the states are scanned once more, then joined."""
_SHORTEST = 512
"""Tokens of a segment at least: a shorter one costs more to join than it saves."""


@dataclass(frozen=True)
class Plan:
    """Items in the order in which `Item` of problem.h has its fields, int32 [count, 8] on the device."""

    items: Tensor
    chunks: int
    """Chunks of all items, or an upper bound."""
    segmented: bool

    @property
    def count(self) -> int:
        return self.items.shape[0]


def segment_length(sequences: int, tokens: int, blocks: int, processors: int) -> int:
    """Tokens of a segment for `sequences` of `tokens` each on a GPU; `blocks` is how many blocks share a sequence."""

    def cost(pieces: int) -> float:
        waves = -(-sequences * pieces * blocks // processors)
        return waves * (-(-tokens // pieces) + CHUNK) * (1.0 if pieces == 1 else _SEGMENT_COST)  # a state costs a chunk

    most = max(1, tokens // _SHORTEST)
    pieces = min((n for n in range(1, min(most, 4 * processors) + 1)), key=lambda n: (cost(n), n))
    return max(CHUNK, -(-tokens // pieces // CHUNK) * CHUNK)


def make(batch: int, tokens: int, cu_seqlens: Tensor | None, blocks: int, reverse: bool, device: torch.device) -> Plan:
    """The plan of a batch [B, T], or of packed documents (B = 1)."""
    count = processors(device)
    if cu_seqlens is None:
        plan = _dense(batch, tokens, segment_length(batch, tokens, blocks, count), reverse, device)
    else:
        plan = _remembered(cu_seqlens, tokens, segment_length(1, tokens, blocks, count), reverse, device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured[id(plan)] = plan
    return plan


_captured: dict[int, Plan] = {}
"""Plans that CUDA graphs read at every replay: they must outlive their place in the caches below."""


@functools.lru_cache(maxsize=1024)  # a training set has some hundred lengths, and a capture cannot make a plan
def _dense(batch: int, tokens: int, length: int, reverse: bool, device: torch.device) -> Plan:
    pieces = max(1, -(-tokens // length))
    rows, chunk = [], 0
    for n in range(batch):
        for piece in range(pieces):
            done = piece * length
            size = min(length, tokens - done)
            begin = n * tokens + (tokens - done - size if reverse else done)
            rows.append((n, begin, size, piece == 0, piece == pieces - 1, chunk, 0, 0))
            chunk += -(-size // CHUNK)
    return Plan(torch.tensor(rows, dtype=torch.int32).reshape(-1, _FIELDS).to(device), chunk, pieces > 1)


def fitting(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Offsets int64 [N+1] on their device. Those out of order or out of range, which cannot be refused without waiting
    for the device, are moved to the nearest that fit."""
    offsets = cu_seqlens.to(torch.int64).clamp(0, tokens).cummax(0).values
    offsets[0], offsets[-1] = 0, tokens
    return offsets


def packed(cu_seqlens: Tensor, tokens: int, length: int, reverse: bool) -> Plan:
    """Documents of any length, cut into segments of at most `length`; device operations only.

    There are at most N + T / length items; those that are not needed have sequence -1.
    """
    documents = cu_seqlens.numel() - 1
    offsets = fitting(cu_seqlens, tokens)
    sizes = offsets.diff()
    pieces = ((sizes + length - 1) // length).clamp(min=1)
    ends = pieces.cumsum(0)
    number = torch.arange(documents + tokens // length, device=offsets.device)
    which = torch.searchsorted(ends, number, right=True).clamp(max=documents - 1)
    piece = number - (ends - pieces)[which]
    used = number < ends[-1]
    done = piece * length
    size = torch.where(used, (sizes[which] - done).clamp(0, length), 0)
    begin = offsets[which] + (sizes[which] - done - size if reverse else done)
    chunks = (size + CHUNK - 1) // CHUNK
    columns = (
        torch.where(used, which, -1), begin, size, piece == 0, piece == pieces[which] - 1, chunks.cumsum(0) - chunks,
        torch.zeros_like(size), torch.zeros_like(size),
    )  # fmt: skip
    items = torch.stack([x.to(torch.int32) for x in columns], 1)
    return Plan(items, tokens // CHUNK + items.shape[0], True)


_recent: dict[tuple[int, ...], tuple[Tensor, Plan]] = {}


def _remembered(cu_seqlens: Tensor, tokens: int, length: int, reverse: bool, device: torch.device) -> Plan:
    """All layers of a model see the same documents. The tensor is kept, so that its address stays its own."""
    if cu_seqlens.device.type == "cpu":  # can be looked at, and refused, without waiting
        return packed(offsets_of(cu_seqlens, 1, tokens).to(device), tokens, length, reverse)
    if cu_seqlens.is_inference():  # has no version: a change could not be seen
        return packed(cu_seqlens, tokens, length, reverse)
    key = (cu_seqlens.data_ptr(), cu_seqlens._version, cu_seqlens.numel(), tokens, length, reverse)
    if key not in _recent:
        while len(_recent) >= 4:
            _recent.pop(next(iter(_recent)))
        _recent[key] = cu_seqlens, packed(cu_seqlens, tokens, length, reverse)
    return _recent[key][1]
