"""The commands of docs/training.md beside those of one's own recipes (tests/tasks), with a hundredth of the steps."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.files import read_json

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
SMALL = [
    "train.steps=10", "train.budget_s=0", "train.sequence_length=16", "train.batch_size=2", "train.eval_tokens=64",
    "train.log_every=1", "train.epochs=0", "model.width=16", "model.layers=1", "model.glu_width=16",
    "model.mixer.head_size=16", "optim.warmup_steps=2",
]  # fmt: skip
SHORTER = {"=1000": "=10", "=2000": "=20", "-00000900": "-00000009", "save_every=100": "save_every=1"}


def commands(heading: str) -> list[list[str]]:
    """Those of one section, shortened."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert section, heading
    found = []
    for line in "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).splitlines():
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        program, *words = shlex.split(line)
        assert program == "hgrn2"
        found.append(words)
    return found


@pytest.fixture
def here(tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the corpora that the page names; no reports, no samples."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    monkeypatch.setattr("hgrn2.tasks.lm.task.write_report", lambda *_, **__: None)
    monkeypatch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
    (tmp_path / "corpora").mkdir()
    for name in ("mine", "wiki", "code"):
        (tmp_path / "corpora" / name).symlink_to(tiny_corpus)
    return tmp_path


def carry_out(heading: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(heading):
        settings = words.index("--set") + 1
        assert entry([*words[:settings], *SMALL, *words[settings:]]) == 0, (words, capsys.readouterr().err)


def test_a_run_that_ends_several_times(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    carry_out("A learning rate that stays, and ends several times", capsys)
    assert (read_json(here / "runs" / "stable" / "summary.json")["steps"]) == 20
    assert (here / "runs" / "decayed" / "checkpoints" / "step-00000010").is_dir()


def test_states_carried(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    carry_out("States carried from step to step", capsys)
    assert (read_json(here / "runs" / "carried" / "summary.json")["steps"]) == 20


HEADINGS = ("Several held-out corpora", "Trackers", "Traces", "Float8")


@pytest.mark.parametrize("heading", HEADINGS)
def test_what_is_recorded_and_rounded(heading: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for needed in {"Trackers": ["tensorboard"], "Float8": ["torchao"]}.get(heading, []):
        pytest.importorskip(needed)
    carry_out(heading, capsys)
    left = {
        "Several held-out corpora": "several/summary.json",
        "Trackers": "tracked/tensorboard", "Traces": "traced/profile/steps-3-4.json.gz",
        "Float8": "rounded/summary.json",
    }  # fmt: skip
    assert (here / "runs" / left[heading]).exists()
