"""Lower bounds of the forget gate: both published formulas, where they lie, and how they learn."""

import math
from collections.abc import Callable

import pytest
import torch

from hgrn2.layers.config import LowerBoundKind
from hgrn2.layers.gates import lower_bounds

KINDS: tuple[LowerBoundKind, ...] = ("inclusive", "exclusive")


def shares(raw: list[float]) -> list[float]:
    """Softmax over the layers of one channel, in plain numbers."""
    weights = [math.exp(value) for value in raw]
    return [weight / math.fsum(weights) for weight in weights]


def stated(raw: list[float], kind: str) -> list[float]:
    """The definition in plain numbers: cumulative sum minus the first row, or the sum of the rows below."""
    p = shares(raw)
    if kind == "inclusive":
        return [math.fsum(p[: layer + 1]) - p[0] for layer in range(len(p))]
    return [math.fsum(p[:layer]) for layer in range(len(p))]


@pytest.mark.parametrize("kind", KINDS)
def test_both_formulas_as_stated(kind: LowerBoundKind, same: Callable) -> None:
    raw = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.tensor([stated(channel, kind) for channel in raw.T.tolist()], dtype=torch.float64).T
    same(lower_bounds(raw, kind), expected)
    same(lower_bounds(raw.float(), kind), expected.float(), 10)


def test_the_formulas_are_not_interchangeable() -> None:
    raw = torch.tensor([[2.0], [0.0], [-1.0]])
    apart = (lower_bounds(raw, "inclusive") - lower_bounds(raw, "exclusive")).abs()[1:]
    assert (apart > 0.1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_start_is_layer_over_depth(kind: LowerBoundKind) -> None:
    for layers in (1, 2, 6, 24):
        bounds = lower_bounds(torch.ones(layers, 3), kind)
        assert torch.allclose(bounds, torch.arange(layers)[:, None].expand(layers, 3) / layers, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_first_then_rising_and_below_one(kind: LowerBoundKind, strength: float, dtype: torch.dtype) -> None:
    raw = strength * torch.randn(9, 200, generator=torch.Generator().manual_seed(2))
    bounds = lower_bounds(raw.to(dtype), kind)
    assert bounds.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (bounds[0] == 0).all()
    assert (bounds.diff(dim=0) >= 0).all()
    assert (bounds < 1).all()


@pytest.mark.parametrize(("kind", "unused"), [("inclusive", 0), ("exclusive", 3)])
def test_gradient_follows_the_used_shares_alone(kind: LowerBoundKind, unused: int, same: Callable) -> None:
    """dγ_l/dΓ_j = Σ_{i used by l} P_i (δ_ij - P_j): the unused share enters through the softmax and nowhere else."""
    raw = torch.randn(4, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    p = shares(raw[:, 0].tolist())
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for layer in range(4):
        used = range(1, layer + 1) if kind == "inclusive" else range(layer)
        assert unused not in used
        for j in range(4):
            expected[layer, j] = sum(p[i] * ((i == j) - p[j]) for i in used)
    jacobian = torch.autograd.functional.jacobian(lambda x: lower_bounds(x, kind), raw)
    same(jacobian[:, 0, :, 0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_learns_and_a_common_shift_does_not(kind: LowerBoundKind) -> None:
    raw = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    weights = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (lower_bounds(raw, kind) * weights).sum().backward()
    assert raw.grad is not None
    assert (raw.grad != 0).all()
    assert float(raw.grad.sum(0).abs().max()) < 1e-15
    assert torch.equal(lower_bounds(raw.detach(), kind)[0], torch.zeros(6, dtype=torch.float64))
