"""The page about classifiers: its code runs from top to bottom and prints what it says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "classifiers.md"


def test_the_code_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("transformers")  # one of the baselines
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    said = []
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        said += re.findall(r"print\(.*\)  # (.*)", block)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert list(dict.fromkeys(printed)) == list(dict.fromkeys(said))
    assert (tmp_path / "my-classifier" / "config.json").is_file()
