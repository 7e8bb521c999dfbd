"""Launch settings of the Triton kernels: a small table, sane defaults for every other GPU, never a search at run time.

`launch(op_pass, arch, n, dtype)` looks for a row in `launch.json` beside this file, which a measurement has written
(`hgrn2 bench ops --tune`), and falls back on the defaults below. The file is one JSON object:

    {"command": "the command line that measured it",
     "rows": [{"pass": "gradient", "arch": "sm90", "n": 128, "dtype": "bfloat16",
               "num_warps": 8, "num_stages": 2, "keys": 64, "values": 128, "precision": "ieee"}, ...]}

`pass` is a name in `PASSES`, `n` the larger of K and V, `dtype` that of the values (i or v). The remaining fields
are those of `Launch`; one that is absent keeps its default. A GPU of compute capability 9.0 is "sm90".
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError

PASSES = ("states", "join", "output", "gradient", "step")
"""scan of the chunk states (both directions), join of segments, output of a chunk, backward of a chunk, one token."""
TABLE = Path(__file__).with_name("launch.json")
PRECISIONS = ("ieee", "tf32x3")
MISCOMPILED = 32
"""Triton 3.6 compiles `output_kernel` wrongly for 16-bit inputs and tiles of this many channels: with given keys the
output was off by more than its own size on an H100, with states and gradients right, and right with the same channels
in a tile of 64 whose surplus is masked. Tiles of 16 are right as they are."""


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched."""

    num_warps: int = 4
    num_stages: int = 1
    keys: int = 64
    """Largest K-tile."""
    values: int = 128
    """Largest V-tile; the gradient kernel takes all of V in one tile."""
    precision: str = "tf32x3"
    """Products of float32 operands: "ieee", or "tf32x3" on tensor cores; narrower operands do not read it."""

    def __post_init__(self) -> None:
        if self.num_warps not in (1, 2, 4, 8, 16) or not 1 <= self.num_stages <= 8:
            raise UserError(f"launch settings need 1 to 16 warps (a power of two) and 1 to 8 stages, not {self}")
        if any(size not in (16, 32, 64, 128, 256) for size in (self.keys, self.values)):
            raise UserError(f"tiles of a launch are 16, 32, 64, 128 or 256 channels, not {self.keys} and {self.values}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision {self.precision!r} is unknown; choose {' or '.join(PRECISIONS)}")

    def tiles(self, keys: int, values: int, avoided: int = 0) -> tuple[int, int]:
        """The tiles for a head of K = keys and V = values channels: powers of two from 16 on, no larger than needed.

        A tile of `avoided` channels is replaced by one of twice as many, the surplus being masked.
        """
        found = min(self.keys, _padded(keys)), min(self.values, _padded(values))
        k, v = (2 * size if size == avoided else size for size in found)
        return k, v


def _padded(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def avoided(op_pass: str, dtype: str) -> int:
    """A tile that must not be used for a pass and dtype, see `MISCOMPILED`; 0 where there is none."""
    return MISCOMPILED if op_pass == "output" and dtype != "float32" else 0


def launch(op_pass: str, arch: str, n: int, dtype: str) -> Launch:
    """Settings of a kernel on an architecture ("sm90") for heads of n = max(K,V) channels and a dtype ("bfloat16")."""
    if op_pass not in PASSES:
        raise UserError(f"pass {op_pass!r} is unknown; choose one of {', '.join(PASSES)}")
    size = _padded(n)
    row = rows(str(TABLE)).get((op_pass, arch, size, dtype), {})
    return replace(default(op_pass, size, dtype), **row)


def default(op_pass: str, n: int, dtype: str) -> Launch:
    """What a GPU that was never measured gets.

    8 warps from n = 64 on: with 4 the two large kernels spill more on sm90 and compile for up to three times as long.
    """
    wide = dtype == "float32"
    if op_pass == "gradient":
        return Launch(num_warps=8 if n >= 64 else 4, keys=32 if wide else 64 if n > 128 else 128, values=256)
    if op_pass == "output":
        return Launch(num_warps=8 if n >= 64 else 4, keys=64 if wide else 128, values=64 if wide else 128)
    if op_pass == "states":
        return Launch(num_warps=4, num_stages=1 if wide else 2, keys=64, values=64 if wide else 128)
    if op_pass == "step":
        return Launch(num_warps=4, keys=256, values=32)
    return Launch(num_warps=4, values=64)


def candidates(op_pass: str, n: int, dtype: str) -> Iterator[Launch]:
    """Settings worth measuring for a pass, the default first; all compute the same, one too large fails to launch."""
    first = default(op_pass, _padded(n), dtype)
    yield first
    largest = 64 if dtype == "float32" else 128
    tiles = [size for size in (32, 64, 128) if size <= min(_padded(n), largest)] or [16]
    wrong = avoided(op_pass, dtype)
    tiles = [size for size in tiles if size != wrong] or [2 * wrong]
    keys = [first.keys] if op_pass == "step" else tiles
    values = [first.values] if op_pass == "gradient" else tiles
    precisions = PRECISIONS if dtype == "float32" and op_pass not in ("step", "join") else (first.precision,)
    stages = (1, 2, 3) if op_pass in ("states", "output", "gradient") else (1,)
    for k, v, warps, stage, precision in product(keys, values, (2, 4, 8), stages, precisions):
        other = Launch(warps, stage, k, v, precision)
        if other != first:
            yield other


@functools.cache
def rows(path: str) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    """The measured rows of a table file by (pass, arch, n, dtype); none where there is no file."""
    file = Path(path)
    if not file.exists():
        return {}
    names = {field.name for field in fields(Launch)}
    try:
        table = json.loads(file.read_text())["rows"]
        return {
            (row["pass"], row["arch"], row["n"], row["dtype"]): {k: v for k, v in row.items() if k in names}
            for row in table
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a table of launch settings: {error!r}") from None
