"""Backends as a parameter: native is skipped, with its reason, where no compiler can build it."""

import pytest
import torch

import hgrn2.ops  # noqa: F401 - fills the registry
from hgrn2.ops.backend import REGISTRY, Call
from hgrn2.ops.native.build import library

FAST = [
    one.name for one in REGISTRY["gated_scan"] if one.examined(Call("gated_scan", torch.device("cpu"), torch.float32))
]
"""The backends that every operator has on a CPU; see test_registry.py for the others."""


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend` varies fastest, so that both backends of a case share the cached float64 reference."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", FAST, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """A fast backend."""
    kernels, why = library()
    if request.param == "native" and kernels is None:
        pytest.skip(why)
    return request.param
