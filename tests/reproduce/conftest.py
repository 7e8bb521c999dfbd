"""Examples so few that a run on them ends in a second."""

from pathlib import Path

import pytest

from hgrn2.data.classes import write_examples
from hgrn2.data.lra.listops import ListOps, make_listops


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared ListOps, as `--data` takes it."""
    folder = tmp_path_factory.mktemp("data")
    settings = ListOps(min_length=4, max_length=40, max_depth=3)
    write_examples(folder / "listops", *make_listops(settings, count=(64, 16, 16)))
    return folder
