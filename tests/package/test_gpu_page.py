"""What docs/gpu.md tells people to type works; what needs a GPU is refused elsewhere, for that reason only."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from hgrn2.cli.main import VERBS, entry
from hgrn2.ops import known_bad

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [shlex.split(line, comments=True)[1:] for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HGRN2_CACHE", str(tmp_path / "cache"))
    known_bad.reason.cache_clear()


def test_the_page_shows_the_verbs_of_a_gpu() -> None:
    assert {"doctor", "bench"} == {arguments[0] for arguments in COMMANDS}
    assert {"doctor", "bench"} <= set(VERBS)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands(
    arguments: list[str], own_cache: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments[0] == "bench":  # takes minutes on a GPU; tests/bench runs it
        assert entry([*arguments[:2], "--help"]) == 0
        known = capsys.readouterr().out
        assert all(word in known for word in arguments if word.startswith("--"))
    elif "cuda" in arguments and not torch.cuda.is_available():
        assert entry(arguments) == 2
        assert "cuda" in capsys.readouterr().err.lower()
    else:
        code = entry(arguments)
        found = capsys.readouterr()
        assert code == 0, found.err
        if "--json" in arguments:
            assert json.loads(found.out)["healthy"]


def test_python_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks("python"):
        exec(compile(block, "gpu.md", "exec"), {})
    assert "hgru2 on c" in capsys.readouterr().out
