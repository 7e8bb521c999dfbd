"""Backends as a parameter: native is skipped, with its reason, where no compiler can build it."""

import pytest

from hgrn2.ops.native.build import library


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend` varies fastest, so that both backends of a case share the cached float64 truth."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", ["chunked", "native"], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """A fast backend."""
    kernels, why = library()
    if request.param == "native" and kernels is None:
        pytest.skip(why)
    return request.param
