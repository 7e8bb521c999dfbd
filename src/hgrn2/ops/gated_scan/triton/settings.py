"""Launch settings of the element-wise scan, and how a sequence is cut where channels alone cannot fill the GPU."""

from dataclasses import dataclass

import torch

from hgrn2.errors import UserError

LANES = 32
"""Threads of a program: one warp, so that programs that finish make room one by one."""
STANDARD_WIDTH = 64
"""Reals by which programs are counted when a sequence is cut: whatever the dtype, the cut is the same, so that results
in a narrow dtype are those of float32 rounded once."""
GRAIN = 32
"""Segments are multiples of this many tokens; rows must divide it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the kernels of one dtype are launched."""

    rows: int
    """Tokens in registers at a time; also how often the forward leaves a state for the backward."""
    width: int
    """Reals of a program; a complex number is two."""
    enough: float = 1.75
    """Programs per multiprocessor from which one scan over whole sequences serves."""
    fill: int = 8
    """Programs per multiprocessor that segments are cut for, where there are fewer."""

    def __post_init__(self) -> None:
        if self.rows not in (8, 16, 32):
            raise UserError(f"rows must be 8, 16 or 32, not {self.rows}")
        if self.width < LANES or self.width & (self.width - 1):
            raise UserError(f"width must be a power of two from {LANES} on, not {self.width}")
        if self.enough <= 0 or self.fill < 1:
            raise UserError("enough and fill must be positive")


# Four bytes per lane and row (eight for double precision, a complex number in one lane), and as many rows as the
# backward keeps in registers without spilling.
_BY_DTYPE = {
    torch.bfloat16: Settings(rows=32, width=64),
    torch.float16: Settings(rows=32, width=64),
    torch.float32: Settings(rows=32, width=32),
    torch.float64: Settings(rows=16, width=32),
    torch.complex32: Settings(rows=16, width=64),
    torch.complex64: Settings(rows=16, width=64),
    torch.complex128: Settings(rows=8, width=64),
}
DTYPES = frozenset(_BY_DTYPE)
"""Dtypes of x that the kernels serve."""


def settings_of(dtype: torch.dtype) -> Settings:
    """The settings for inputs x of a dtype."""
    return _BY_DTYPE[dtype]


@dataclass(frozen=True)
class Cut:
    """Sequences of T tokens in `segments` pieces of `length` tokens, the last one shorter or as long."""

    segments: int
    length: int


def cut(settings: Settings, batch: int, tokens: int, reals: int, processors: int) -> Cut:
    """Whole sequences where they make programs enough; else segments, but none shorter than two grains."""
    programs = batch * -(-reals // STANDARD_WIDTH)
    wanted = 1 if programs >= settings.enough * processors else -(-settings.fill * processors // programs)
    length = max(-(-tokens // wanted), 2 * GRAIN)
    length = -(-length // GRAIN) * GRAIN
    return Cut(-(-tokens // length), length)
