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

    def compare(actual: Tensor, truth: Tensor, roundings: float = 300.0) -> None:
        assert actual.shape == truth.shape
        assert actual.dtype == truth.dtype
        actual, truth = actual.detach(), truth.detach()
        if not truth.is_floating_point() and not truth.is_complex():
            assert torch.equal(actual, truth)
        elif truth.numel():
            allowed = roundings * torch.finfo(truth.dtype).eps * float(truth.abs().max())
            assert float((actual - truth).abs().max()) <= allowed

    return compare
