"""`hgrn2 reproduce` from the command line: resume, runs without data, several at once, and what it leaves."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import entry
from hgrn2.reproduce.page import BEGIN, END
from hgrn2.tasks.classify.task import ClassifyTask

TINY = (
    "train.steps=6", "train.batch_size=8", "train.eval_every=3", "train.save_every=2", "train.log_every=2",
    "model.width=16", "model.glu_width=16", "model.layers=1", "model.mixer.head_size=4",
)  # fmt: skip
TINY_RECALL = ("train.steps=2", "data.train=32x2x64", "data.test=32x2x16", "train.batch_size=8")


def command(folder: Path, *more: str) -> list[str]:
    places = ("--out", str(folder / "runs"), "--results", str(folder / "results"), "--page", str(folder / "page.md"))
    return [*places, "--size", "small", "--device", "cpu", "--json", *more]


def outcomes(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert entry(["reproduce", *arguments]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results" / "reproduce.jsonl").read_text().splitlines()]


def lra(folder: Path, data: Path, *more: str) -> list[str]:
    return ["lra", *command(folder, "--data", str(data), "--seeds", "0", *more)]


def test_runs_that_can_be_are_and_the_page_shows_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text(f"{BEGIN}\n{END}\n")
    arguments = lra(tmp_path, data, "--tasks", "listops,text", "--models", "hgrn2,transformer", "--set", *TINY)
    first = outcomes(capsys, arguments)
    assert sorted(one["state"] for one in first) == ["finished", "finished", "no data", "no data"]
    assert all("imdb" in one["text"] for one in first if one["state"] == "no data")
    found = rows(tmp_path)
    assert [one["subject"] for one in found] == ["hgrn2", "transformer"]
    summary = json.loads((Path(first[-1]["folder"]) / "summary.json").read_text())
    details = found[1]["details"]
    assert found[1]["value"] == summary["held_out"]["test"]["accuracy"]
    assert details["valid"] == summary["held_out"]["valid"]["accuracy"]
    assert details["parameters"] == summary["parameters"]
    assert details["epochs"] == 0.75
    assert "batch 8 (128)" in details["differs"]
    assert "64 / 16 / 16 examples" in details["data"]
    assert f"{100 * found[0]['value']:.2f}" in (tmp_path / "page.md").read_text()
    again = outcomes(capsys, arguments)
    assert sorted(one["state"] for one in again) == ["no data", "no data", "skipped", "skipped"]
    assert rows(tmp_path) == found
    other = outcomes(capsys, [*arguments, "optim.lr=0.5"], code=1)
    assert "other settings: optim.lr is 0.005 there and 0.5 here" in next(
        one["text"] for one in other if one["state"] == "failed"
    )


def test_an_interrupted_run_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = lra(tmp_path, data, "--tasks", "listops", "--models", "hgrn2,hgrn1", "--set", *TINY)
    make = ClassifyTask.batch

    def stopped(task: ClassifyTask, step: int, part: int, parts: int) -> Any:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return make(task, step, part, parts)

    monkeypatch.setattr(ClassifyTask, "batch", stopped)
    assert [one["state"] for one in outcomes(capsys, arguments, code=130)] == ["interrupted"]
    assert not (tmp_path / "results" / "reproduce.jsonl").exists()
    monkeypatch.undo()
    place = tmp_path / "runs" / "runs" / "listops-hgrn2-small-s0"
    before = (place / "metrics.jsonl").read_text().splitlines()
    assert next(one["step"] for one in map(json.loads, before) if one["kind"] == "step") == 2
    found = outcomes(capsys, arguments)
    assert [one["state"] for one in found] == ["finished", "finished"]
    after = (place / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before  # seconds and all: it was not begun anew
    assert json.loads(after[-1])["step"] == 6
    assert len(rows(tmp_path)) == 2


@pytest.mark.full
def test_several_at_once_leave_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--models", "hgrn1", "--seeds", "0,1", "--set", *TINY_RECALL]
    alone = outcomes(capsys, ["mqar", *command(tmp_path / "alone", *arguments)])
    together = outcomes(capsys, ["mqar", *command(tmp_path / "together", "--parallel", "2", *arguments)])
    values = [{one["seed"]: one["accuracy"] for one in found} for found in (alone, together)]
    assert values[0] == values[1]
    assert set(values[0]) == {0, 1}
    assert {row["details"]["at_once"] for row in rows(tmp_path / "together")} == {2}


def test_a_failing_run_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mqar", *command(tmp_path, "--models", "hgrn2-conv", "--seeds", "0", "--set", *TINY_RECALL)]
    place = tmp_path / "runs" / "runs" / "mqar-hgrn2-conv-n4-small-s0"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("something else")
    found = outcomes(capsys, arguments, code=1)
    assert [one["state"] for one in found] == ["failed", "finished", "finished"]
    assert "holds other files" in found[0]["text"]


def test_finished_runs_are_collected_with_their_machine(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / "listops", tmp_path / "recall"]
    places = [("--out", str(run), "--device", "cpu", "--json", "--set") for run in runs]
    examples = ("--data", str(data / "listops"), "--size", "small")
    assert entry(["train", "lra", "listops", *examples, *places[0], *TINY]) == 0
    assert entry(["train", "mqar", "small", *places[1], *TINY_RECALL]) == 0
    machine = json.loads((runs[0] / "environment.json").read_text()) | {"gpu": "a GPU of yours"}
    (runs[0] / "environment.json").write_text(json.dumps(machine))
    collect = ["reproduce", "collect", *map(str, runs), "--results", str(tmp_path / "results")]
    for said in ("right", "known"):
        capsys.readouterr()
        assert entry([*collect, "--page", str(tmp_path / "page.md")]) == 0
        assert all(line.endswith(said) for line in capsys.readouterr().out.splitlines())
    found = rows(tmp_path)
    assert [(row["case"]["task"], row["subject"], row["case"]["n"]) for row in found] == [
        ("listops", "hgrn2", None), ("mqar", "hgrn2-conv", 64),
    ]  # fmt: skip
    assert found[0]["machine"] == machine
    assert found[0]["details"]["device"] == "cuda"
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert found[0]["value"] == summary["held_out"]["test"]["accuracy"]
    (runs[0] / "summary.json").unlink()
    assert entry(collect) == 2
    assert "summary.json is missing" in capsys.readouterr().err


def test_dry_run_makes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = lra(tmp_path, data, "--tasks", "listops,text", "--models", "hgrn2", "--dry-run")
    plan = outcomes(capsys, arguments)
    assert [(one["task"], one["state"]) for one in plan] == [("listops", "new"), ("text", "new")]
    assert all(one["parameters"] > 1000 and one["steps"] > 0 for one in plan)
    assert plan[1]["data"].startswith("no data")
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lra", *command(tmp_path, "--tasks", "text", "--models", "hgrn2")]
    assert [one["state"] for one in outcomes(capsys, arguments, code=2)] == ["no data"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--seeds", "a"), "write whole numbers"),
        (("--parallel", "0"), "--parallel"),
        (("--tasks", "listop"), "did you mean listops"),
        (("--data", "nowhere"), "not a folder"),
        (("--set", "model.no=1"), "no setting model.no"),
    ],
)
def test_bad_input_is_one_line(
    more: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry(["reproduce", "lra", *command(tmp_path), *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert words in error[0]
    assert not (tmp_path / "runs").exists()
