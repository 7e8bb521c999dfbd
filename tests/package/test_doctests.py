"""Examples in docstrings compute what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import hgrn2

ROOT = Path(hgrn2.__file__).parent
NEEDS = {"hf": "transformers", "deit": "transformers"}
"""By a part of the module's name: the library without which it cannot be imported."""
MODULES = sorted(
    ".".join(("hgrn2", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    for part in name.split("."):
        if part in NEEDS:
            pytest.importorskip(NEEDS[part], reason=f"{part} needs {NEEDS[part]}")
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples() -> None:
    assert len(MODULES) > 5
