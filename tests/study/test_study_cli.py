"""`hgrn2 study` from the command line: a comparison that is really trained, in a moment."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import entry
from hgrn2.study.page import BEGIN, END
from hgrn2.tasks.lm.task import LanguageTask

TINY = ("model.width=32", "model.layers=1", "model.glu_width=32", "model.mixer.head_size=16", "train.eval_tokens=600")


def command(folder: Path, *more: str, study: str = "compare") -> list[str]:
    places = ("--out", str(folder / "runs"), "--results", str(folder / "results"), "--device", "cpu")
    tokens = (
        "--sweep-tokens",
        "2048",
        "--final-tokens",
        "2048",
        "--seeds",
        "0",
        "--optimizers",
        "adamw",
        "--lrs",
        "4e-3",
    )
    return ["study", study, *places, *tokens, "--json", *more, "--set", *TINY]


def outcome(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> Any:
    capsys.readouterr()
    assert entry(arguments) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results" / "study.jsonl").read_text().splitlines()]


def test_two_architectures_are_trained_alike_and_not_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path, "--models", "hgrn2", "llama")
    planned = outcome(capsys, [*arguments[:-6], "--plan", *arguments[-6:]])
    assert [(one["model"], one["runs_left"], one["tokens_left"]) for one in planned] == [
        ("hgrn2", 1, 2048), ("llama", 1, 2048),
    ]  # fmt: skip
    found = outcome(capsys, arguments)
    assert [one["state"] for one in found["arms"]] == ["complete", "complete"]
    (group,) = found["best"]
    made = rows(tmp_path)
    assert {one["subject"]: one["value"] for one in made} == {one["model"]: one["loss"] for one in group["entries"]}
    assert made[0]["case"] == made[1]["case"]
    for one in made:
        curve, details = one["details"]["curve"], one["details"]
        assert [tokens for tokens, _ in curve] == [1024, 2048]
        assert curve[1][1] < curve[0][1] < 4.3
        assert details["parameters"] == details["non_embedding"] + 65 * 32
        assert details["held_out_tokens"] == 599
    # Rows alone, without the folders of their runs, count as done.
    again = outcome(capsys, [*arguments[:2], "--out", str(tmp_path / "other"), *arguments[4:]])
    assert [one["state"] for one in again["arms"]] == ["complete", "complete"]
    assert rows(tmp_path) == made
    # And a folder of finished runs fills a results folder that lacks their rows.
    (tmp_path / "results" / "study.jsonl").unlink()
    outcome(capsys, arguments)
    assert sorted(map(json.dumps, rows(tmp_path))) == sorted(map(json.dumps, made))
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert entry(["study", "table", "--results", str(tmp_path / "results"), "--page", str(page)]) == 0
    assert "of shakespeare, every architecture as published" in page.read_text()


def test_an_interrupted_run_goes_on_to_the_same_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(tmp_path, "--models", "hgrn2")
    whole = tmp_path / "whole"
    outcome(capsys, command(whole, "--models", "hgrn2"))
    make = LanguageTask.batch

    def stopped(task: LanguageTask, step: int, part: int, parts: int) -> Any:
        if step == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return make(task, step, part, parts)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageTask, "batch", stopped)
        found = outcome(capsys, arguments, code=130)
    assert [(one["state"], one["text"]) for one in found["arms"]] == [
        ("interrupted", "stopped in hgrn2, rate 0.004, seed 0, 2.05k tokens"),
    ]  # fmt: skip
    assert list((tmp_path / "runs" / "runs").glob("*/checkpoints/step-*"))
    assert not (tmp_path / "results" / "study.jsonl").exists()
    outcome(capsys, arguments)
    assert rows(tmp_path)[0]["value"] == rows(whole)[0]["value"]


def test_a_run_that_diverges_counts_as_a_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path, "--models", "hgrn2")
    arguments[arguments.index("4e-3")] = "1e30"
    found = outcome(capsys, arguments)
    assert found["arms"][0]["state"] == "complete"
    (row,) = rows(tmp_path)
    assert row["value"] == pytest.approx(4.174, abs=1e-3)  # ln 65
    assert "became nan at step" in row["details"]["diverged"]


@pytest.mark.parametrize(("study", "models"), [("others", ("lru", "lru-expanded")), ("structured", ("kronecker",))])
def test_expansions_are_trained(
    study: str, models: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcome(capsys, command(tmp_path, "--models", *models, study=study))
    assert [one["state"] for one in found["arms"]] == ["complete"] * len(models)
    for one in rows(tmp_path):
        curve = one["details"]["curve"]
        assert curve[1][1] < curve[0][1] < 4.3


def test_loss_by_position_up_to_sixteen_times_the_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(capsys, command(tmp_path, "--models", "hgrn2", "--sequence-length", "16", study="length"))
    (row,) = rows(tmp_path)
    ends = [bucket[1] for bucket in row["details"]["by_position"]]
    assert ends[-1] == 256
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "compere"], "did you mean compare"),
        (["study", "compare", "--out", "x", "--models", "mambo"], "no model of this study 'mambo'"),
        (["study", "expansion", "--out", "x", "--models", "n48"], "does not divide the width 128"),
        (["study", "structured", "--out", "x", "--models", "krone"], "no model of this study 'krone'"),
        (["study", "others", "--out", "x", "--set", "model.mixer.expansion=5"], "not for hgru1_real"),
        (["study", "compare", "--out", "x", "--data", "nowhere"], "neither 'shakespeare' nor the folder"),
        (["study", "compare", "--out", "x", "--sequence-length", "100"], "does not divide"),
        (["study", "compare", "--out", "x", "--jobs", "0"], "--jobs is 0"),
        (["study", "compare", "--out", "x", "--set", "model.widht=3"], "no setting model.widht"),
        (["study", "collect", "nowhere.jsonl"], "no file of rows"),
        (["study", "length", "--out", "x", "--sequence-length", "8192", "--size", "45m"], "no document has 131,072"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert entry(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_folder_of_another_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(capsys, command(tmp_path, "--models", "hgrn2"))
    capsys.readouterr()
    assert entry(command(tmp_path, "--models", "hgrn2", study="ablation")) == 2
    assert 'study is "compare" there and "ablation" here' in capsys.readouterr().err
