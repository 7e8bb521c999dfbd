"""The page of all settings: complete, true and up to date; what a mistyped name is told; errors as JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hgrn2.cli.main import VERBS, entry
from hgrn2.cli.settings_page import KINDS, page, settings_of
from hgrn2.settings import to_dict, with_overrides
from hgrn2.tasks.classify.recipes import recipe as classifier
from hgrn2.tasks.lm.recipes import recipe
from hgrn2.tasks.mqar.recipes import recipe as recall
from hgrn2.tasks.tune.config import TuneSettings

PAGE = Path(__file__).parents[2] / "docs/settings.md"
RUNS: dict[str, Any] = {
    "lm": recipe("demo"),
    "mqar": recall("small"),
    "sequence": classifier("listops", "hgrn2", "small"),
    "image": classifier("cifar10", "hgrn2", "small"),
    "deit": classifier("cifar10", "deit", "small"),
    "tune": TuneSettings(),
}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: hgrn2 settings --out docs/settings.md"


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_says_what_it_means(kind: str) -> None:
    found = settings_of(kind)
    assert len({one.name for one in found}) == len(found) >= 5
    assert [one.name for one in found if not (one.meaning and one.type)] == []


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


@pytest.mark.parametrize("kind", RUNS)
def test_the_page_names_what_set_takes_and_nothing_else(kind: str) -> None:
    run, found = RUNS[kind], settings_of(kind)
    assert {one.name for one in found} == set(flat(to_dict(run))) - {"kind", "model.kind", *type(run).unread}
    defaults = tuple(f"{one.name}={one.default}" for one in found if one.name.startswith("optim."))
    made = with_overrides(run, defaults).optim
    own = type(run).__name__ == "TuneSettings"  # which has defaults of its own
    assert made == (run.optim if own else dataclasses.replace(type(made)()))


def test_what_the_verb_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["settings", "lm"]) == 0
    text = capsys.readouterr().out
    assert "optim.lr = 0.0003   (number)" in text
    assert "Peak learning rate of AdamW." in text
    assert entry(["settings", "tune", "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)
    assert (first["name"], first["type"], first["default"]) == ("start_tokens", "whole number", "0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["settings", "tunes"], "there is no kind of run 'tunes'; did you mean tune?"),
        (["setings"], "there is no verb 'setings'; did you mean settings?"),
        (["train", "lmm"], "there is no task of hgrn2 train 'lmm'; did you mean lm?"),
        (["train", "lm", "Demo"], "there is no recipe 'Demo'; did you mean demo?"),
        (
            ["train", "lm", "demo", "--set", "train.stepz=1"],
            "no setting train.stepz; did you mean train.steps?",
        ),
        (
            ["train", "lm", "--set", "train.stepz=1", "--device", "cpu", "--set", "train.steps=1"],
            "no setting train.stepz; did you mean train.steps?",
        ),
        (["train", "lm", "demo", "--set", "optim.schedule=cosin"], "did you mean cosine?"),
        (["train", "lm", "demo", "--model", "hgrn2_demoo"], "did you mean hgrn2_demo"),
        (["train", "lra", "listop", "--data", "x"], "there is no task 'listop'; did you mean listops?"),
        (["train", "lra", "text", "--data", "x", "--model", "hgrn3"], "did you mean hgrn"),
        (["train", "mqar", "zoologi"], "there is no recipe 'zoologi'; did you mean zoology?"),
        (["data", "lra", "listops", "--out", "nowhere/x", "--set", "max_dept=3"], "did you mean max_depth?"),
        (["reproduce", "lra", "--out", "nowhere/x", "--tasks", "listop"], "did you mean listops?"),
    ],
)
def test_mistyped_names(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert entry(arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_json_tells_every_error_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["train", "lm", "dem", "--json"],
        ["generate", "no/such/run", "--prompt", "x", "--json"],
        ["generate", "no/such/run", "--temperature", "nan", "--json"],
        ["generate", "no/such/run", "--max-tokens", "many", "--json"],
        ["eval", "no/such/run", "--json"],
        ["data", "info", "no/such/folder", "--json"],
        ["classify", "--json"],
        ["settings", "x", "--json"],
    ):
        assert entry(arguments) == 2
        captured = capsys.readouterr()
        (name, message), *rest = json.loads(captured.out).items()
        assert (name, rest) == ("error", [])
        assert message.strip()
        assert captured.err.strip()
    assert entry(["settings", "lm", "--json", "--help"]) == 0


def test_every_option_that_is_a_number_refuses_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["generate", "r", "--prompt", "x", "--temperature", "nan"],
        ["generate", "r", "--prompt", "x", "--repetition-penalty", "inf"],
        ["generate", "r", "--prompt", "x", "--max-tokens", str(2**63)],
        ["reproduce", "lra", "--out", "nowhere/x", "--minutes", "nan"],
        ["bench", "ops", "--max-seconds", "inf"],
        ["data", "prepare", "x", "--out", "nowhere/x", "--tokenizer", "bytes", "--valid-fraction", "nan"],
        ["study", "mqar", "--out", "nowhere/x", "--lrs", "nan"],
    ):
        assert entry(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert "it must be" in error, error


def test_all_verbs_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in VERBS)
    for name in VERBS:
        assert entry([name, "--help"]) == 0
        assert name in capsys.readouterr().out
