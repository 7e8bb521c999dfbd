"""Run folders that the version before the common runner wrote, after two steps, in `before/`: the commands that made
them go on, and end with the losses that version ended with when it went on itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import entry
from hgrn2.files import read_json

BEFORE = Path(__file__).with_name("before")
LOOP = ["train.eval_every=0", "train.save_every=0", "train.log_every=1", "train.batch_size=2", "train.steps=4"]
SMALL = [*LOOP, "train.keep=1", "model.width=8", "model.glu_width=8", "model.layers=1", "model.mixer.head_size=4"]
TEXT = ["train.sequence_length=8", "train.eval_tokens=64"]
COMMANDS = {
    "lm": ["train", "lm", "demo", "--data", "corpus", "--set", *SMALL, *TEXT, "train.budget_s=0"],
    # Recall never read train.loss, and took it in silence.
    "mqar": ["train", "mqar", "small", "--set", *SMALL, "model.vocab_size=16", "data.train=16x2x8", "data.test=16x2x4",
             "train.loss=full"],
    "classify": ["train", "classify", "said.csv", "--minutes", "0", "--tokenizer", "bytes", "--set", *SMALL],
    "tune": ["tune", "state", "lm", "--data", "corpus", "--set", *LOOP, *TEXT],
}  # fmt: skip
LOSSES: dict[str, dict[str, Any]] = {
    "lm": {"steps": [5.543325, 5.535879], "carried state": 5.542022, "windows of 8": 5.541822},
    "mqar": {"steps": [3.026628, 2.861788], "16 tokens, 2 pairs": 2.958177},
    "classify": {"steps": [0.590199, 0.580195], "valid": 0.613573},
    "tune": {"steps": [5.545382, 5.544600], "carried state, before": 5.545930, "carried state, after": 5.547056},
}
"""Of steps 3 and 4, and at the end on held-out examples; by commit f073f68 on one CPU core."""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for task in ("lm", "mqar", "classify", "tune"):  # figures take longer than all the rest
        monkeypatch.setattr(f"hgrn2.tasks.{task}.task.write_report", lambda *_, **__: None)
    return tmp_path


@pytest.mark.parametrize("kind", COMMANDS)
def test_they_go_on(kind: str, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry([*COMMANDS[kind], "--out", kind, "--device", "cpu"]) == 0, capsys.readouterr().err
    assert "resumed from step 2" in capsys.readouterr().out
    records = [json.loads(line) for line in (folders / kind / "metrics.jsonl").read_text().splitlines()]
    steps = [one["loss"] for one in records if one["kind"] == "step"]
    summary, wanted = read_json(folders / kind / "summary.json"), dict(LOSSES[kind])
    assert steps[2:] == pytest.approx(wanted.pop("steps"), rel=1e-4)
    for name, value in wanted.items():
        row = summary["held_out"][name]
        assert row.get("nats_per_token", row.get("loss")) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("kind", ["lm", "mqar", "classify"])
def test_they_load(kind: str, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = {
        "lm": ["generate", "lm", "--prompt", "the", "--max-tokens", "3"],
        "mqar": ["train", "mqar", "--out", "mqar", *COMMANDS["mqar"][3:], "optim.lr=0.5"],  # read, and told apart
        "classify": ["classify", "classify", "--text", "zz zzy"],
    }[kind]
    code = entry([*command, "--device", "cpu"] if kind != "mqar" else command)
    assert code == (2 if kind == "mqar" else 0)
    said = capsys.readouterr()
    assert "optim.lr is 0.02 there and 0.5 here" in said.err if kind == "mqar" else said.out.strip()
