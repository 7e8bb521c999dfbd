"""What a call looks like to the kernels: sequences, chunks and segments, known from shapes alone.

Nothing here reads device memory. Packed documents get tables (owner and first piece), built on the device with sizes
that the host knows: at most T/C + N chunks. Programs beyond the last chunk return at once.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.gpu import architecture, processors
from hgrn2.ops.gated_outer_scan.triton.gates import CHUNK as _CHUNK
from hgrn2.ops.gated_outer_scan.triton.launch_table import Launch, avoided, launch

CHUNK = int(_CHUNK.value)
PROGRAMS_PER_PROCESSOR = 4
"""Scans are cut into segments where whole sequences give fewer programs than this."""
LEAST_SEGMENT = 8
"""Chunks; shorter segments would spend more on joining than they gain."""
LEAST_NARROW = 16
"""Channels from which 16-bit inputs put bfloat16 into products. In smaller heads few terms share the rounding of the
operands: a 1 x 1 state was off by 1.9e-3, dγ of heads of 4 by 8.8e-3. `auto` has other kernels for most of them."""


@dataclass(frozen=True)
class Pieces:
    """Chunks, or segments of chunks: their number (an upper bound where packed) and where they belong."""

    count: int
    each: int
    """Pieces of every sequence of a dense batch."""
    owner: Tensor | None = None
    """[count] int32 sequence of each piece, N for those beyond the end; packed documents only."""
    first: Tensor | None = None
    """[N+1] int32 first piece of each sequence; packed documents only."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a call and its pieces."""

    sequences: int
    tokens: int
    """Of a sequence; of all documents where packed."""
    heads: int
    keys: int
    values: int
    offsets: Tensor | None
    """[N+1] packed documents, on the device."""
    chunks: Pieces
    device: torch.device
    dtype: torch.dtype
    """That the kernels work in: float32 throughout, or narrower with bfloat16 operands of products."""

    @property
    def packed(self) -> bool:
        return self.offsets is not None

    def launch(self, op_pass: str) -> Launch:
        name = str(self.dtype).removeprefix("torch.")
        return launch(op_pass, architecture(self.device), max(self.keys, self.values), name)

    def tiles(self, op_pass: str) -> tuple[int, int]:
        """Channels of a tile of K and of V in a pass."""
        name = str(self.dtype).removeprefix("torch.")
        return self.launch(op_pass).tiles(self.keys, self.values, avoided(op_pass, name))

    def segments(self, programs: int) -> tuple[int, Pieces] | None:
        """Chunks of a segment and the segments, where `programs` a sequence leave processors idle; else None."""
        wanted = PROGRAMS_PER_PROCESSOR * processors(self.device)
        longest = -(-self.tokens // CHUNK)
        if self.packed:  # lengths are not known here: a skewed batch would wait for its longest document
            span = max(LEAST_SEGMENT, -(-longest * programs // wanted))
        else:
            span = max(LEAST_SEGMENT, -(-longest * programs * self.sequences // wanted))
        enough = 3 * self.sequences * programs >= wanted and not self.packed
        if enough or span >= longest:
            return None
        return span, cut(self.offsets, self.sequences, self.tokens, span * CHUNK)


def cut(offsets: Tensor | None, sequences: int, tokens: int, size: int) -> Pieces:
    """Pieces of `size` tokens; the last one of a sequence may be shorter."""
    if offsets is None:
        each = -(-tokens // size)
        return Pieces(sequences * each, each)
    count = tokens // size + sequences
    counts = torch.div(offsets.diff() + (size - 1), size, rounding_mode="floor")
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    numbers = torch.arange(count, device=offsets.device, dtype=torch.int32)
    owner = torch.searchsorted(first[1:].contiguous(), numbers, right=True, out_int32=True)
    return Pieces(count, 0, owner, first)


def whole(plan: Plan) -> Pieces:
    """Every sequence as one piece."""
    if not plan.packed:
        return Pieces(plan.sequences, 1)
    numbers = torch.arange(plan.sequences + 1, device=plan.device, dtype=torch.int32)
    return Pieces(plan.sequences, 1, numbers, numbers)


def plan_call(
    batch: int, tokens: int, heads: int, keys: int, values: int, cu_seqlens: Tensor | None, like: Tensor
) -> Plan:
    """The plan of a call on [batch, tokens] with these heads, on the device of `like` and, but for small heads, in its
    dtype."""
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    chunks = cut(cu_seqlens, sequences, tokens, CHUNK)
    dtype = like.dtype if max(keys, values) >= LEAST_NARROW else torch.float32
    return Plan(sequences, tokens, heads, keys, values, cu_seqlens, chunks, like.device, dtype)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
