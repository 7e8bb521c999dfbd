"""Traces of steps: which steps, whole files that others read, also of a run that ends inside the window."""

import gzip
import json
from pathlib import Path

import pytest

from hgrn2.cli.main import entry
from hgrn2.train.metrics import read_metrics

SMALL = [
    "train.budget_s=0", "train.sequence_length=16", "train.batch_size=2", "train.eval_every=0", "train.eval_tokens=100",
    "model.width=16", "model.layers=1", "model.glu_width=16", "model.mixer.head_size=16",
]  # fmt: skip


@pytest.mark.parametrize(("window", "steps"), [("2,3", (2, 3)), ("4,9", (4,))])
def test_the_trace_has_the_steps_asked_for(
    window: str, steps: tuple[int, ...], tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgrn2.tasks.lm.task.write_report", lambda *_, **__: None)
    monkeypatch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
    folder = tmp_path / "run"
    command = ["train", "lm", "demo", "--data", str(tiny_corpus), "--out", str(folder), "--set", *SMALL]
    assert entry([*command, "train.steps=4", f"train.profile={window}"]) == 0
    name = "steps-" + "-".join(map(str, steps))
    assert sorted(path.name for path in (folder / "profile").iterdir()) == [f"{name}.json.gz", f"{name}.txt"]
    events = json.loads(gzip.decompress((folder / "profile" / f"{name}.json.gz").read_bytes()))["traceEvents"]
    named = [event.get("name", "") for event in events if event.get("cat") == "user_annotation"]
    assert [text for text in named if text.startswith("step ")] == [f"step {step}" for step in steps]
    assert "aten::mm" in {event.get("name") for event in events}
    assert "aten::mm" in (folder / "profile" / f"{name}.txt").read_text()
    told = [r["text"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "event"]
    assert told == [f"the trace of {name} lies in profile/"]
    assert entry([*command, "train.steps=4", "--restart"]) == 0
    assert not (folder / "profile").exists()


@pytest.mark.parametrize("window", ["3", "5,2", "0,2", "1,2,3"])
def test_no_window(window: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["train", "lm", "demo", "--set", f"train.profile={window}"]) == 2
    assert "profile: write it as the first and the last step, such as 20,22" in capsys.readouterr().err
