"""Every verb, through the command line as a user types it, on a tiny corpus: what it prints and what it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import VERBS, entry

SMALL = (
    "train.budget_s=0", "train.steps=6", "train.sequence_length=16", "train.batch_size=2", "train.log_every=2",
    "train.eval_every=3", "train.eval_tokens=200", "model.width=32", "model.layers=2", "model.glu_width=32",
    "model.mixer.head_size=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    command = ["train", "lm", "demo", "--data", str(tiny_corpus), "--out", str(folder), "--set", *SMALL]
    assert entry(command) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert entry([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_train_leaves_a_complete_run_folder(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.json", "environment.json", "metrics.jsonl", "checkpoints", "tokenizer", "summary.json", "report.html",
        "figures",
    }  # fmt: skip
    page = (run / "report.html").read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["held_out"]) == {"carried state", "windows of 16"}
    for row in summary["held_out"].values():
        assert f"{row['nats_per_token']:.4f} <span" in page
    assert page.count("<svg") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_train_prints_json(tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ("train", "lm", "--data", str(tiny_corpus), "--out", str(folder))
    capsys.readouterr()
    assert entry([*arguments, "--json", "--set", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 6
    assert found["tokens"] == 6 * 2 * 16
    assert not found["interrupted"]


def test_eval_agrees_with_the_end_of_training(run: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())["held_out"]
    arguments = ("eval", str(run), "--data", str(tiny_corpus), "--method", "windows", "--window", "16")
    text = json.dumps(printed(capsys, *arguments))
    assert str(summary["windows of 16"]["nats_per_token"])[:9] in text


def test_generate_is_repeatable(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", str(run), "--prompt", "line 3", "--max-tokens", "12", "--seed", "5")
    once, again = (printed(capsys, *arguments) for _ in range(2))
    for timing in ("prompt_seconds", "tokens_per_second"):
        assert once.pop(timing) > 0
        again.pop(timing)
    assert once == again


def test_data_info_and_verify(tiny_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = printed(capsys, "data", "info", str(tiny_corpus))
    assert info["splits"]["train"]["tokens"] > 1000
    assert entry(["data", "verify", str(tiny_corpus)]) == 0


def test_bench_ops_records_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    command = ["bench", "ops", "--ops", "gated_scan", "--shapes", "1x32x16x16", "--repeats", "1", "--out", str(out)]
    assert entry(command) == 0
    rows = [json.loads(line) for line in (out / "ops.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["median"] > 0 and row["machine"]["torch"] for row in rows)
    assert entry(["bench", "table", "--results", str(out), "--out", str(tmp_path / "page.md")]) == 0
    assert "gated" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("verb", [f"{name} {task}".strip() for name, (_, tasks) in VERBS.items() for task in tasks])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry([*verb.split(), "--help"]) == 0
    assert f"Example: hgrn2 {verb}" in " ".join(capsys.readouterr().out.split())
