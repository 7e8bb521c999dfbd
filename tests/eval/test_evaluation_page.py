"""What docs/evaluation.md tells people to type works."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'hgrn2[eval]'")

from small_tasks import ITEMS

from hgrn2.cli.main import entry
from hgrn2.data.corpus import prepare
from hgrn2.eval.tasks import FIELDS, TASKS
from hgrn2.files import write_json

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
TEXT = "A text of one line or so, which is all there is.\n" * 6


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [shlex.split(line)[1:] for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture
def place(tmp_path: Path, saved: Callable[..., Path], task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page names."""
    task_folder.rename(tmp_path / "my-tasks")
    lines = "".join(json.dumps(item) + "\n" for item in ITEMS["arc-easy"])
    for name in ("arc-challenge", "openbookqa", "hellaswag"):
        (tmp_path / "my-tasks" / f"{name}.jsonl").write_text(lines)
    (tmp_path / "my-text.txt").write_text(TEXT)
    (tmp_path / "wiki.test.tokens").write_text(" \n = Title = \n \n Some words . \n")
    prepare([tmp_path / "my-text.txt"], tmp_path / "corpus", "bytes", valid_fraction=0.5)
    checkpoint = saved("runs/mine/checkpoints/step-00000010")
    run = tmp_path / "runs" / "mine"
    (checkpoint / "tokenizer").rename(run / "tokenizer")
    write_json(run / "config.json", {"data": {"source": "corpus"}, "train": {"sequence_length": 32}})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for arguments in COMMANDS:
        assert entry([*arguments, "--device", "cpu"]) == 0, (arguments, capsys.readouterr().err)
    assert (place / "positions.png").is_file()
    assert (place / "results" / "eval.jsonl").is_file()


def test_the_page_names_every_task_and_option() -> None:
    for name in TASKS:
        assert f"`{name}`" in PAGE
    for option in ("--tasks", "--task-data", "--compare-rescoring", "--wikitext", "--positions", "--plot", "--out"):
        assert option in PAGE


def test_the_forms_of_task_files() -> None:
    (block,) = blocks("json")
    forms = [set(json.loads(line)) for line in block.splitlines()]
    assert forms == [set(FIELDS[kind]) for kind in ("choices", "schema", "cloze")]


def test_inside_lm_eval(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    (place / "my-yaml").mkdir()
    (place / "my-yaml" / "mine.yaml").write_text(blocks("yaml")[0])
    (block,) = blocks("python")
    exec(compile(block, "evaluation.md", "exec"), {})
    shown = float(capsys.readouterr().out.strip().splitlines()[-1])
    assert entry(["eval", "runs/mine", "--tasks", "arc_easy", "--task-data", "my-tasks", "--json"]) == 0
    assert shown == json.loads(capsys.readouterr().out)["results"][0]["metrics"]["acc"]
