"""Standard streams that are closed, full, read no further or of a narrow encoding, as a shell gives them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hgrn2.cli.main import entry

SETTINGS = f"'{sys.executable}' -m hgrn2 settings"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env={**os.environ, **environment}, capture_output=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        (f"{SETTINGS} lm | head -1", 0, ""),
        (f"{SETTINGS} lm --json | head -1", 0, ""),
        (f"{SETTINGS} lm >&- <&-", 0, ""),
        (f"{SETTINGS} lm > /dev/full", 2, "hgrn2: error: standard output: No space left on device\n"),
        (f"{SETTINGS} lm 2>&- >/dev/null", 0, ""),
        (f"{SETTINGS} none 2>/dev/full", 2, ""),
    ],
)
def test_a_stream_that_takes_nothing_is_no_traceback(command: str, code: int, error: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stderr.decode()) == (code, error)


def test_names_that_are_no_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["generate", "caf\udce9\x1b[31m", "--prompt", "x", "--json"]) == 2
    captured = capsys.readouterr()
    assert "caf\\udce9\\x1b[31m" in captured.err
    assert "\\udce9" in captured.out


def test_a_folder_whose_name_is_no_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts are read there; weights cannot be, which is said before they are trained."""
    text, folder = tmp_path / "t\udce9.txt", tmp_path / "caf\udce9"
    text.write_text("alpha beta gamma delta " * 60)
    corpus, run = str(folder / "corpus"), str(folder / "run")
    small = ["model.width=32", "model.layers=1", "model.glu_width=32", "model.mixer.head_size=16", "train.budget_s=0",
             "train.steps=1", "train.sequence_length=16", "train.batch_size=1", "train.eval_every=0"]  # fmt: skip
    assert entry(["data", "prepare", str(text), "--out", corpus, "--tokenizer", "bytes", "--json"]) == 0
    assert entry(["train", "lm", "small", "--data", corpus, "--out", run, "--set", *small]) == 2
    assert "caf\\udce9/run is not UTF-8" in capsys.readouterr().err
    assert not (folder / "run").exists()
    run = str(tmp_path / "run")
    assert entry(["train", "lm", "small", "--data", corpus, "--out", run, "--set", *small]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["source"] == corpus
    assert entry(["eval", run, "--json"]) == 0
