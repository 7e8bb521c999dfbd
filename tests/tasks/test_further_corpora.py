"""Several held-out corpora: losses by name in the log, the summary and the report, the same as when measured alone."""

import json
from pathlib import Path

import pytest

from hgrn2 import perplexity
from hgrn2.cli.main import entry
from hgrn2.data.corpus import Corpus
from hgrn2.models.saved import load_model
from hgrn2.train.metrics import read_metrics

SMALL = [
    "train.budget_s=0", "train.sequence_length=16", "train.batch_size=2", "train.steps=2", "train.eval_every=1",
    "train.eval_tokens=200", "model.width=16", "model.layers=1", "model.glu_width=16", "model.mixer.head_size=16",
]  # fmt: skip


def prepared(folder: Path, text: str, *options: str) -> Path:
    (folder / "t.txt").write_text(text)
    out = folder / "corpus"
    assert entry(["data", "prepare", str(folder / "t.txt"), "--out", str(out), *options]) == 0
    return out


def test_losses_by_name(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
    monkeypatch.setattr("hgrn2.report.write.draw", lambda *_: {})
    other = prepared(tmp_path, "quite another text " * 30, "--tokenizer", "bytes", "--valid-fraction", "0")
    folder = tmp_path / "run"
    named = ["--valid", f"same={tiny_corpus}", f"other={other}"]
    command = ["train", "lm", "demo", "--data", str(tiny_corpus), "--out", str(folder)]
    assert entry([*command, *named, "--set", *SMALL]) == 0
    shown = capsys.readouterr().out
    evals = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "eval"]
    assert len(evals) == 2
    for record in evals:
        assert record["corpora"]["same"] == record["loss"] != record["corpora"]["other"]
    summary = json.loads((folder / "summary.json").read_text())["held_out"]
    assert set(summary) == {
        "carried state", "windows of 16", "same: carried state", "same: windows of 16", "other: carried state",
        "other: windows of 16",
    }  # fmt: skip
    assert summary["same: carried state"] == summary["carried state"]
    alone = perplexity.carried(load_model(folder), Corpus.open(other, "train"), reset_documents=True)
    assert summary["other: carried state"]["nats_per_token"] == pytest.approx(alone.nats_per_token, rel=1e-6)
    assert "other: windows of 16" in shown
    assert "other: carried state" in (folder / "report.html").read_text()
    assert entry([*command, "--set", *SMALL, "train.steps=3"]) == 0, "it goes on without them"


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("corpora/x", "write it as NAME=FOLDER"),
        ("a=/nowhere/at/all", "a is '/nowhere/at/all', which is no folder of a prepared corpus"),
        ("a=CHARS", "a was prepared with another tokenizer than"),
    ],
)
def test_what_cannot_be_measured(
    named: str, told: str, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "CHARS" in named:
        named = named.replace("CHARS", str(prepared(tmp_path, "abc " * 50, "--tokenizer", "chars")))
    command = ["train", "lm", "demo", "--data", str(tiny_corpus), "--valid", named, "--out", str(tmp_path / "run")]
    assert entry([*command, "--set", *SMALL]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
