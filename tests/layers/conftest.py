"""Shared by the tests of the layers: modules with weights that leave nothing at its neutral value, and a comparison."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Gives every parameter of a module in float64 a random value, so that a forgotten weight or bias shows."""

    def fill(module: nn.Module, seed: int = 0, std: float = 0.5) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.double().parameters():
            parameter.data = std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return module

    return fill


@pytest.fixture
def same() -> Callable[[Tensor, Tensor], None]:
    """Two results of the same numbers in another order: equal but for a few hundred roundings of the largest one."""

    def compare(actual: Tensor, expected: Tensor, roundings: float = 300.0) -> None:
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        actual, expected = actual.detach(), expected.detach()
        if not expected.is_floating_point() and not expected.is_complex():
            assert torch.equal(actual, expected)
        elif expected.numel():
            allowed = roundings * torch.finfo(expected.dtype).eps * float(expected.abs().max())
            assert float((actual - expected).abs().max()) <= allowed

    return compare
