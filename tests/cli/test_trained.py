"""What a finished run suggests: commands that can be pasted, with a prompt of its own text."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import entry
from hgrn2.cli.trained import ended, next_steps, own_prompt

TINY = ["model.width=32", "model.layers=1", "model.glu_width=32", "model.mixer.head_size=16", "train.budget_s=0",
        "train.steps=1", "train.sequence_length=16", "train.batch_size=1", "train.eval_every=0"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("the quick brown fox jumps over the lazy dog and on", "the quick brown fox jumps over the lazy"),
        ("\n\n  - Kapitel 1\nrest", "Kapitel 1"),
        ("…\n«Où?» dit-il", "«Où?» dit-il"),
        ("x" * 90, "x" * 40),
        ("\x00\x01\n\ufffd\n---", ""),
        ("", ""),
    ],
)
def test_a_prompt_of_ones_own_text(text: str, prompt: str) -> None:
    assert own_prompt(text) == prompt


def test_commands_survive_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    next_steps(Path("runs/my run"), "curves", ("generate", Path("runs/my run"), "--prompt", "it's [bold]"))
    report, command = capsys.readouterr().out.strip().splitlines()[1:]
    assert report.split() == ["runs/my", "run/report.html", "curves,", "for", "a", "browser"]
    assert shlex.split(command) == ["hgrn2", "generate", "runs/my run", "--prompt", "it's [bold]"]


@dataclass(frozen=True)
class Result:
    folder: Path = Path("runs/x")
    interrupted: bool = False
    step: int = 3
    summary: dict[str, Any] = field(default_factory=dict)


def test_how_a_run_ended(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[Result] = []
    assert ended(Result(), False, shown.append) == 0
    assert ended(Result(interrupted=True), False, shown.append) == 130
    assert len(shown) == 1
    assert "stopped at step 3; the same command" in capsys.readouterr().out


def test_what_training_on_ones_own_text_suggests_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, corpus, run = tmp_path / "t.txt", str(tmp_path / "corpus"), str(tmp_path / "run")
    text.write_text("a sentence without capitals and it goes on. " * 60)
    assert entry(["data", "prepare", str(text), "--out", corpus, "--tokenizer", "chars"]) == 0
    capsys.readouterr()
    assert entry(["train", "lm", "small", "--data", corpus, "--out", run, "--set", *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if line.strip().startswith("hgrn2 ")]
    assert [command[1] for command in commands] == ["generate", "eval"]
    assert not any("ROMEO" in line or "demo" in line for line in lines)
    for command in commands:
        assert entry([*command[1:], "--json"]) == 0


def test_a_held_out_part_of_one_token_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text("the quick brown fox " * 40)
    (tmp_path / "v.txt").write_text("t")
    corpus, run = str(tmp_path / "corpus"), tmp_path / "run"
    made = ["data", "prepare", str(tmp_path / "t.txt"), "--valid", str(tmp_path / "v.txt"), "--out", corpus]
    assert entry([*made, "--tokenizer", "chars"]) == 0
    assert entry(["train", "lm", "small", "--data", corpus, "--out", str(run), "--set", *TINY]) == 2
    assert "1 held-out tokens; a measurement takes at least 2" in capsys.readouterr().err
    assert not run.exists()
