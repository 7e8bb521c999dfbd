"""Weights as whole numbers with one scale per block: symmetric, rounded to nearest, scales of least square error.

    w ≈ scale · (value - 2^(bits-1))        value in [0, 2^bits), `block` neighbours along a row share a scale

This is the layout of onnxruntime's MatMulNBits and GatherBlockQuantized without zero points, for which the middle of
the range stands. Two 4-bit values share a byte, the first one in the low half.
"""

from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 4096
SHRINKS = {4: (1.0, 0.94, 0.88, 0.82, 0.76), 8: (1.0,)}
"""Scales to try, as parts of the one that clips nothing. With 16 levels cutting the largest weight of a block off can
lose less than coarser steps for the others do; with 256 there is little to win."""


@dataclass(frozen=True)
class Quantized:
    """A matrix [N,K], rows padded with zeros to whole blocks."""

    values: np.ndarray
    """[N,ceil(K/block),block*bits/8] uint8."""
    scales: np.ndarray
    """[N,ceil(K/block)] float32."""
    bits: int
    block: int
    columns: int
    """K."""

    def dequantized(self) -> np.ndarray:
        """The matrix that products are taken with, [N,K] float32."""
        levels = self.values
        if self.bits == 4:
            levels = np.stack((levels & 15, levels >> 4), -1).reshape(*levels.shape[:2], -1)
        weights = (levels.astype(np.float32) - 2 ** (self.bits - 1)) * self.scales[..., None]
        return np.ascontiguousarray(weights.reshape(len(weights), -1)[:, : self.columns])


def quantize(weight: np.ndarray, bits: int, block: int) -> Quantized:
    """A matrix [N,K] float32 in blocks along K."""
    parts = [_rows(weight[start : start + ROWS_AT_ONCE], bits, block) for start in range(0, len(weight), ROWS_AT_ONCE)]
    values, scales = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Quantized(values, scales, bits, block, weight.shape[1])


def _rows(weight: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    middle = 2 ** (bits - 1)
    blocks = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block))).reshape(len(weight), -1, block)
    # The range has one step more below the middle than above it: the weight of the largest size is given that side.
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    best_error, best_levels, best_scale = np.full(peak.shape, np.inf), np.zeros(blocks.shape), peak
    for shrink in SHRINKS[bits]:
        scale = (peak * (shrink / -middle)).astype(np.float32)
        levels = np.rint(blocks / np.where(scale == 0, 1, scale)[..., None]).clip(-middle, middle - 1)
        error = np.square(levels * scale[..., None] - blocks).sum(-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_levels = np.where(better[..., None], levels, best_levels)
        best_scale = np.where(better, scale, best_scale)
    stored = (best_levels + middle).astype(np.uint8)
    if bits == 4:
        stored = stored[..., 0::2] | stored[..., 1::2] << 4
    return stored, best_scale.astype(np.float32)
