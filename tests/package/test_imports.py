"""Imports point down; the contract stands in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_contract_holds() -> None:
    pytest.importorskip("importlinter", reason="import-linter is a development dependency")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_no_file_is_unpickled() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for banned in ("import pickle", "torch.load(", "allow_pickle=True"):
            assert banned not in text, f"{path.relative_to(ROOT)} uses {banned}"
