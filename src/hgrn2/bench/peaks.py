"""What this GPU can do at most, measured: bytes copied a second and the arithmetic of a large matrix product."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hgrn2.bench.problems import Setting
from hgrn2.bench.timing import Events
from hgrn2.progress import Progress
from hgrn2.rows import Row, measurement

COPIED_BYTES = 2 << 30
SIDE = 8192
ROUNDS = 5


@dataclass(frozen=True)
class Peaks:
    """Rates of this GPU."""

    copied: float
    """Bytes a second, those read and those written, of a device-to-device copy."""

    def beside(self, setting: Setting, direction: str, milliseconds: float) -> dict[str, Any]:
        """How a time compares with that of reading every input and writing every result once."""
        least = setting.floor_bytes(direction)
        floor = 1e3 * least / self.copied
        return {
            "floor_ms": round(floor, 4),
            "times_floor": round(milliseconds / floor, 2),
            "gb_s": round(least / milliseconds / 1e6, 1),
        }


def measure_peaks(
    record: Callable[[Row], None], progress: Progress, conditions: dict[str, Any], size: int = COPIED_BYTES
) -> Peaks:
    """Measure and record both rates; random numbers, as zeros can be quicker."""
    progress("measured peaks of this GPU", 0, 1)
    source = torch.randn(size // 2, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    copied = _rates(lambda: target.copy_(source), 2 * size)
    record(measurement("peaks", {"what": "copy", "bytes": size}, "torch", "torch", copied, "GB/s", conditions))
    a, b = source[: 2 * SIDE * SIDE].view(2, SIDE, SIDE)
    product = target[: SIDE * SIDE].view(SIDE, SIDE)
    rates = [x / 1e3 for x in _rates(lambda: torch.mm(a, b, out=product), 2 * SIDE**3)]
    case = {"what": f"bfloat16 matrix product of {SIDE} x {SIDE}", "bytes": None}
    row = measurement("peaks", case, "torch", "torch", rates, "TFLOP/s", conditions)
    record(row)
    progress("measured peaks of this GPU", 1, 1)
    return Peaks(1e9 * sorted(copied)[len(copied) // 2])


def _rates(call: Callable[[], object], work: int) -> list[float]:
    """Work in billions per second, once a round."""
    sample = Events(call)
    sample()  # warms up
    return [work / sample() / 1e9 for _ in range(ROUNDS)]
