"""What docs/distributed.md tells people to type is what the verb takes, and what it tells them itself."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from hgrn2.cli.main import entry
from hgrn2.parallel.config import CONTEXT_KINDS, TENSOR_KINDS, ParallelConfig

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_commands(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines for torchrun are those that the verb asks for without it; others are taken, and refused as said."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    arguments = words[words.index("hgrn2") + 1 :]
    monkeypatch.setattr(sys, "argv", ["hgrn2", *arguments])
    if words[0] == "torchrun":
        assert entry(arguments) == 2
        assert capsys.readouterr().err.strip().endswith(line)
    elif "refused" in line:
        assert entry(arguments) == 2
        assert "batch_size 8 does not divide into parallel.data 3" in capsys.readouterr().err
    elif "--plan-table" in arguments:
        pass  # long: test_parallel_plan.py compares what it prints with the page
    elif "bench" in arguments:
        assert entry([*arguments, "--rounds", "0"]) == 2
        assert "--rounds is 0" in capsys.readouterr().err
    elif "--plan" in arguments:
        assert entry(arguments) == 0
        assert "64 x NVIDIA H200" in capsys.readouterr().out
    else:
        assert entry([*arguments, "--set", "train.steps=0"]) == 2
        assert "steps is 0" in capsys.readouterr().err


def test_the_page_knows_every_setting_and_kind() -> None:
    for name in ParallelConfig.__dataclass_fields__:
        assert f"`parallel.{name}`" in PAGE
    assert "mamba2" in CONTEXT_KINDS
    assert "mamba" not in (*CONTEXT_KINDS, *TENSOR_KINDS)
