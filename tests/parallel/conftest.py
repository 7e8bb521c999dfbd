"""A group of CPU processes for the tests of this folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hgrn2.testing.processes import run_group


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., None]:
    """Runs checks, functions of a test module without arguments, in so many processes: `ranks(2, check, ...)`."""
    return lambda world, *checks, **options: partial(run_group, world, tmp_path)(*checks, **options)
