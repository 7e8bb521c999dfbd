"""What docs/data.md tells people to type works, in its order."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from hgrn2.cli.main import entry

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, zstandard = pytest.importorskip("pyarrow"), pytest.importorskip("zstandard")
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
    texts = [f"Row {n}: some words about nothing much, {n * n} of them." * 20 for n in range(40)]
    parquet.write_table(pyarrow.table({"body": texts}), "reviews.parquet")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    Path("news.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    Path("books.txt").write_text("\n\n".join(texts))
    commands = [
        shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 6
    small = [
        "model.mixer.head_size=8",
        "train.sequence_length=32",
        "train.batch_size=4",
        "model.width=16",
        "model.layers=1",
        "model.glu_width=16",
    ]
    for program, *words in commands:
        assert program == "hgrn2"
        assert entry([*words, *(small if words[0] == "train" else ())]) == 0, words
    assert os.path.isfile("runs/mixed/summary.json")
    read = json.loads(Path("runs/mixed/summary.json").read_text())["mixture"]
    assert list(read) == ["corpora/books", "corpora/news"]
