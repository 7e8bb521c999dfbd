"""Shared by the tests of the benchmarks: the command line in this process, and its settings undone afterwards."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.cli.main import entry


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output of a command with --json."""
        return json.loads(self.out)


@pytest.fixture
def baselines() -> None:
    """Skips where the baselines cannot be had."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("the baselines need transformers (extra bench)")


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Sizes that every model can be fitted to, and that take milliseconds."""
    return ("--width", "64", "--layers", "2", "--head-size", "16", "--glu-width", "320", "--vocab-size", "32")


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `hgrn2 bench …` and returns its exit code and output."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = entry(["bench", *map(str, arguments)])
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture
def written() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows in a file."""
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
