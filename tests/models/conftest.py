"""Shared by the tests of the models: small models, random everywhere, and the comparison of results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import CONFIGS, VOCABULARY, config_of
from torch import Tensor

from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel


@pytest.fixture(params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    """Every kind of model in turn."""
    return request.param


@pytest.fixture
def make() -> Callable[..., LanguageModel]:
    """Builds a model in which no parameter has a neutral value: matrices by fan-in, the rest around their start."""

    def build(name: str, seed: int = 0, **changes: Any) -> LanguageModel:
        model = LanguageModel(config_of(name, **changes))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2 and parameter is not model.backbone.lower_bounds:
                parameter.data = noise * parameter.shape[1] ** -0.5
            else:
                parameter.data += 0.3 * noise
        return model

    return build


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """Random token ids [B,T]."""

    def draw(batch: int = 2, length: int = 29, seed: int = 1) -> Tensor:
        return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def same() -> Callable[..., None]:
    """Results of the same numbers in another order: tensors or states, equal but for roundings of the largest one."""

    def compare(actual: Tensor | ModelState, expected: Tensor | ModelState, roundings: float = 1000.0) -> None:
        if isinstance(expected, ModelState):
            assert isinstance(actual, ModelState)
            mine, theirs = actual.tensors(), expected.tensors()
            assert list(mine) == list(theirs)
            for key in theirs:
                compare(mine[key], theirs[key], roundings)
            return
        assert isinstance(actual, Tensor)
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        if expected.dtype == torch.int64:
            assert torch.equal(actual, expected)
        elif expected.numel():
            allowed = roundings * torch.finfo(expected.dtype).eps * float(expected.detach().abs().max())
            assert float((actual - expected).detach().abs().max()) <= allowed

    return compare
