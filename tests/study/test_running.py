"""The runs of a study: resumed from rows alone, stopped in time, and never stopped by one arm that fails."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.rows import Row
from hgrn2.study import running
from hgrn2.study.arms import arms
from hgrn2.study.protocol import Case, Study
from hgrn2.study.record import Recorder, collect, losses, recorded
from hgrn2.study.running import Ended, run_study
from hgrn2.study.training import Place

Make = Callable[..., Row]
FLOORS = {"hgrn2": 4e-3, "llama": 1.6e-2}


class Seen:
    """A view that remembers."""

    def __init__(self) -> None:
        self.begun: list[Case] = []
        self.rows: list[Row] = []

    def started(self, case: Case) -> None:
        self.begun.append(case)

    def finished(self, case: Case, row: Row) -> None:
        self.rows.append(row)

    def ended(self, ended: Ended) -> None: ...


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(
        out=tmp_path, device=torch.device("cpu"), precision="bfloat16", corpus="c0ffee", vocab_size=65, quiet=True
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, row: Make) -> dict[str, Any]:
    """Runs end at once, with a loss that is lowest at the model's own rate; the dictionary changes how."""
    ways: dict[str, Any] = {}

    def made(study: Study, case: Case, place: Place) -> Row | None:
        name, lr = case.arm.subject, case.lr
        if name in ways:
            return ways[name](case)
        loss = 4 + math.log2(lr / FLOORS[name]) ** 2 / 10 + case.seed / 100
        return row(study, case.arm, loss, lr=lr, seed=case.seed, tokens=case.tokens, device="cpu")

    monkeypatch.setattr(running, "train_case", made)
    return ways


def test_every_arm_is_swept_at_its_own_rates_and_then_seeded(trained: dict[str, Any], place: Place) -> None:
    study, seen = Study(seeds=(0, 1), sweep_tokens=1024, final_tokens=2048), Seen()
    sides = arms(study, ("hgrn2", "llama"), ("adamw",))
    assert [one.state for one in run_study(study, sides, place, [], seen)] == ["complete", "complete"]
    by_arm = {arm.subject: [(c.lr, c.seed, c.tokens) for c in seen.begun if c.arm == arm] for arm in sides}
    assert by_arm["hgrn2"] == [
        (2e-3, 0, 1024), (4e-3, 0, 1024), (8e-3, 0, 1024), (4e-3, 0, 2048), (4e-3, 1, 2048),
    ]  # fmt: skip
    assert [lr for lr, _, _ in by_arm["llama"]] == [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 1.6e-2, 1.6e-2]


def test_rows_alone_say_what_is_done(trained: dict[str, Any], place: Place, tmp_path: Path) -> None:
    study, first = Study(seeds=(0,), sweep_tokens=1024, final_tokens=0), Seen()
    sides = arms(study, ("hgrn2",), ("adamw",))
    run_study(study, sides, place, [], first)
    recorder = Recorder(tmp_path / "results")
    for one in first.rows[:2]:
        recorder.add(one)
    again = Seen()
    run_study(study, sides, place, recorded(tmp_path / "results"), again)
    assert [case.lr for case in again.begun] == [8e-3]
    # Rows of other tokens, text or settings are others'.
    other = Seen()
    run_study(replace(study, set=("optim.clip=2",)), sides, place, recorder.rows, other)
    assert len(other.begun) == 3
    other = Seen()
    run_study(study, sides, replace(place, corpus="another"), recorder.rows, other)
    assert len(other.begun) == 3


def test_no_run_is_begun_that_would_not_end_in_time(
    trained: dict[str, Any], place: Place, row: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, clock = Study(seeds=(0,), sweep_tokens=102_400, final_tokens=0), [1000.0]
    (arm,) = sides = arms(study, ("hgrn2",), ("adamw",))
    monkeypatch.setattr(running.time, "time", lambda: clock[0])

    def slow(case: Case) -> Row:
        clock[0] += 100
        return row(study, arm, 4 + case.lr, lr=case.lr, tokens_per_s=1024, device="cpu")

    trained["hgrn2"] = slow

    def begun(seconds: float, rows: list[Row]) -> tuple[str, int]:
        seen = Seen()
        (ended,) = run_study(study, sides, place, rows, seen, seconds=seconds)
        return ended.state, len(seen.begun)

    first = row(study, arm, 4.001, lr=1e-3, tokens_per_s=1024, device="cpu")
    assert begun(350, [first]) == ("out of time", 3)
    assert begun(350, []) == ("out of time", 3)  # how long the first one takes is not known
    assert begun(90, [first]) == ("out of time", 1)  # longer than the whole budget: it goes on in a later call
    assert begun(0, [first]) == ("out of time", 0)
    assert begun(5000, [first])[0] == "complete"


def test_an_arm_that_fails_leaves_the_others(trained: dict[str, Any], place: Place) -> None:
    def fails(case: Case) -> Row:
        raise RuntimeError("out of memory:\n  tried to allocate")

    trained["hgrn2"] = fails
    study, seen = Study(seeds=(0,), sweep_tokens=1024, final_tokens=0), Seen()
    ended = run_study(study, arms(study, ("hgrn2", "llama"), ("adamw",)), place, [], seen)
    assert [(one.state, one.text) for one in ended] == [
        ("failed", "out of memory: tried to allocate"),
        ("complete", ""),
    ]


def test_an_interrupted_run_ends_the_study(trained: dict[str, Any], place: Place) -> None:
    trained["hgrn2"] = lambda case: None
    study = Study(seeds=(0,), sweep_tokens=1024, final_tokens=0)
    ended = run_study(study, arms(study, ("hgrn2", "llama"), ("adamw",)), place, [], Seen())
    assert [one.state for one in ended] == ["interrupted"]


def test_rows_of_other_machines_are_collected_once(tmp_path: Path, row: Make) -> None:
    study = Study(seeds=(0,), sweep_tokens=1024)
    (arm,) = arms(study, ("hgrn2",), ("adamw",))
    there, here = tmp_path / "there", tmp_path / "here"
    Recorder(here).add(row(study, arm, 4.0, lr=1e-3))
    for recorder in (Recorder(there),):
        recorder.add(row(study, arm, 4.0, lr=1e-3))
        recorder.add(row(study, arm, 3.9, lr=2e-3))
    assert collect([there], here) == (1, 1)
    assert collect([there / "study.jsonl"], here) == (0, 2)
    common = {name: value for name, value in recorded(here)[0].case.items()
              if name not in ("optimizer", "lr", "seed", "tokens", "arm")}  # fmt: skip
    assert losses(recorded(here), common, arm) == {(1e-3, 0, 1024): 4.0, (2e-3, 0, 1024): 3.9}
    with pytest.raises(UserError, match=r"nothing\.jsonl is no file of rows"):
        collect([tmp_path / "nothing.jsonl"], here)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl holds no row of a study"):
        collect([tmp_path / "empty.jsonl"], here)
