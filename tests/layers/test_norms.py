"""Four norms against their formulas in plain numbers."""

import math
from collections.abc import Callable

import pytest
import torch

from hgrn2.layers.config import NormKind
from hgrn2.layers.norm import Norm

KINDS: tuple[NormKind, ...] = ("rms", "layer", "simple_rms", "head_rms")
EPS = 0.03  # large enough that a wrong or forgotten eps shows


def stated(kind: str, row: list[float], weight: list[float], bias: list[float], heads: int) -> list[float]:
    if kind == "layer":
        mean = math.fsum(row) / len(row)
        variance = math.fsum((x - mean) ** 2 for x in row) / len(row)
        return [(x - mean) / math.sqrt(variance + EPS) * w + b for x, w, b in zip(row, weight, bias, strict=True)]
    size = len(row) // heads if kind == "head_rms" else len(row)
    made: list[float] = []
    for start in range(0, len(row), size):
        group = row[start : start + size]
        made += [x / math.sqrt(math.fsum(y * y for y in group) / size + EPS) for x in group]
    return made if kind == "simple_rms" else [x * w for x, w in zip(made, weight, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_formula(kind: NormKind, randomised: Callable, same: Callable) -> None:
    norm = randomised(Norm(kind, 12, EPS, heads=3))
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = [1.0] * 12 if norm.weight is None else norm.weight.tolist()
    bias = [0.0] * 12 if norm.bias is None else norm.bias.tolist()
    truth = [[stated(kind, row, weight, bias, 3) for row in batch] for batch in x.tolist()]
    same(norm(x), torch.tensor(truth, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "tensors"), [("rms", 1), ("layer", 2), ("simple_rms", 0), ("head_rms", 1)])
def test_parameters_and_their_start(kind: NormKind, tensors: int) -> None:
    norm = Norm(kind, 8, EPS, heads=2)
    assert len(list(norm.parameters())) == tensors
    assert norm.weight is None or torch.equal(norm.weight, torch.ones(8))
    assert norm.bias is None or torch.equal(norm.bias, torch.zeros(8))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_loses_no_more_than_its_output_must(kind: NormKind, randomised: Callable) -> None:
    """The sums run in float32: the error is a few roundings of the values themselves, not of a thousand additions."""
    norm = randomised(Norm(kind, 1024, 1e-6, heads=4)).bfloat16()
    x = (100 + torch.randn(4, 1024, generator=torch.Generator().manual_seed(2))).bfloat16()
    if kind == "layer":
        x = x - 100
    y = norm(x)
    assert y.dtype == torch.bfloat16
    truth = norm.double()(x.double())
    assert float((y.double() - truth).abs().max()) <= 2 * torch.finfo(torch.bfloat16).eps * float(truth.abs().max())
