"""What docs/finetune.md tells people to type works, in short form, in the order in which it stands."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import entry
from hgrn2.errors import UserError
from hgrn2.rows import read_rows

PAGE = (Path(__file__).parents[2] / "docs" / "finetune.md").read_text(encoding="utf-8")
SHORT = {
    "tune": ["--set", "train.steps=2", "train.batch_size=2", "train.sequence_length=32", "train.eval_tokens=200"],
    "state_tuning": [
        *("--steps", "2", "--batch-size", "2", "--sequence-length", "32", "--seeds", "1", "--eval-tokens", "300"),
    ],
    "sft_lora": [
        *("--steps", "2", "--batch-size", "2", "--length", "64", "--documents", "40", "--held-out", "8", "--cpu"),
    ],
    "qlora": ["--steps", "2", "--batch-size", "2", "--length", "64", "--held-out", "4"],
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture
def place(base: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run and the corpus that the page speaks of."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(base, tmp_path / "runs" / "wiki")
    shutil.copytree(tiny_corpus, tmp_path / "corpora" / "speeches")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def run(command: list[str], example: Callable[[str], Any]) -> None:
    if command[0] == "hgrn2":
        arguments = [word if word != "100" else "5" for word in command[1:]]
        assert entry([*arguments, *SHORT.get(arguments[0], [])]) == 0
        return
    name = Path(command[1]).stem
    example(name).main([*command[2:], *SHORT[name]])


def test_state_tuning(place: Path, example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = [command for command in COMMANDS if command[0] == "hgrn2" and "runs/wiki" in command]
    assert [command[1] for command in found] == ["tune", "generate"]
    for command in found:
        run(command, example)
    exec(compile(blocks("python")[0], "finetune.md", "exec"), {})
    assert (place / "runs" / "shakespeare" / "report.html").is_file()


def test_lora(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'hgrn2[finetune]'")
    exec(compile(blocks("python")[1], "finetune.md", "exec"), {})
    assert "trainable params" in capsys.readouterr().out
    assert (place / "adapters" / "mine" / "adapter_config.json").is_file()
    assert entry(["generate", "models/lora", "--prompt", "line", "--max-tokens", "3"]) == 0


@pytest.mark.full
def test_examples(place: Path, example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("trl", "peft", "torchao"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    found = [command for command in COMMANDS if command[0] == "python" or "models/sft" in command]
    assert [Path(command[1]).stem for command in found] == ["state_tuning", "sft_lora", "generate", "qlora", "qlora"]
    for command in found:
        run(command, example)
    rows = read_rows(place / "results" / "tune.jsonl")
    assert [row.subject for row in rows] == ["none", "opening", "state", "lora"]
    assert [row.case["bits"] for row in read_rows(place / "results" / "qlora.jsonl")] == [8] * 6 + [4] * 6
    assert rows[2].details["trained"] > 0
    assert "held-out nats/token" in capsys.readouterr().out
    for name, words in (("sft_lora", ["--held-out", "40"]), ("qlora", [])):  # models/... is there by now
        with pytest.raises(UserError, match="already exists"):
            run(["python", f"{name}.py", "runs/wiki", "--out", "models/sft"], example)
        arguments = ["runs/wiki", "--out", "models/new", *SHORT[name], *words]
        if words:
            with pytest.raises(UserError, match="nothing is left to train on"):
                example(name).main(arguments)
    assert not (place / "models" / "new").exists()
