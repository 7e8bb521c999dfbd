"""Quantised weights: the nearest of the levels there are, in the layout that onnxruntime reads."""

import numpy as np
import pytest

from hgrn2.export.quantize import Quantized, quantize

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("columns", [64, 40, 5])
@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_that_of_the_steps(bits: int, columns: int, block: int) -> None:
    weight = RANDOM.standard_normal((7, columns)).astype(np.float32)
    packed = quantize(weight, bits, block)
    count = -(-columns // block)
    assert packed.values.shape == (7, count, block * bits // 8)
    assert packed.scales.shape == (7, count)
    found = packed.dequantized()
    assert found.shape == weight.shape
    assert found.dtype == np.float32
    # One step is at most the largest weight over half the levels. Weights beyond the last level are cut off, and
    # rounding is at most half a step elsewhere; the mean square of a uniform rounding error is a twelfth of a step's.
    step = np.repeat(np.abs(packed.scales), block, 1)[:, :columns]
    error = np.abs(found - weight)
    inside = np.abs(weight) < step * (2 ** (bits - 1) - 1)
    assert (error[inside] <= step[inside] * 0.5001).all()
    assert np.square(error).mean() <= 1.5 * np.square(step).mean() / 12


def test_levels_come_back_to_the_bit() -> None:
    """What is on the grid already stays as it is, zeros and whole rows of zeros too."""
    levels = RANDOM.integers(-8, 8, (5, 32)).astype(np.float32)
    levels[:, 0] = -8
    levels[2] = 0
    for bits in (4, 8):
        assert (quantize(levels * 0.25, bits, 32).dequantized() == levels * 0.25).all()


def test_the_first_of_two_values_is_the_low_half() -> None:
    packed = Quantized(np.array([[[0x18, 0xF9]]], np.uint8), np.array([[0.5]], np.float32), 4, 4, 4)
    assert packed.dequantized().tolist() == [[0.0, -3.5, 0.5, 3.5]]


def test_cutting_off_an_outlier_is_tried() -> None:
    """With 16 levels a lone large weight must not cost all others their precision."""
    weight = RANDOM.uniform(-1, 1, (64, 32)).astype(np.float32)
    packed = quantize(weight, 4, 32)
    peak = np.abs(weight).max(-1, keepdims=True) / 8
    plain = np.rint(weight / peak).clip(-8, 7) * peak
    assert np.square(packed.dequantized() - weight).sum() < np.square(plain - weight).sum()


def test_many_rows_are_done_in_parts() -> None:
    weight = RANDOM.standard_normal((5000, 16)).astype(np.float32)
    packed = quantize(weight, 8, 16)
    last = quantize(weight[-3:], 8, 16)
    assert (packed.values[-3:] == last.values).all()
    assert (packed.scales[-3:] == last.scales).all()
