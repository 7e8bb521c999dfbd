"""Folders of examples that a few layers learn in seconds."""

from pathlib import Path

import pytest
from drawn import drawn_images, drawn_sequences, write


@pytest.fixture(scope="session")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 96 / 24 / 24 sequences."""
    counts = {"train": 96, "valid": 24, "test": 24}
    splits = {name: drawn_sequences(count, seed) for seed, (name, count) in enumerate(counts.items())}
    return write(tmp_path_factory.mktemp("drawn") / "sequences", splits, 20)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 96 / 24 / 24 images."""
    counts = {"train": 96, "valid": 24, "test": 24}
    splits = {name: drawn_images(count, seed) for seed, (name, count) in enumerate(counts.items())}
    return write(tmp_path_factory.mktemp("drawn") / "images", splits, 256)
