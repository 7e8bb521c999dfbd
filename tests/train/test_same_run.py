"""A run folder is gone on with under the settings it was begun with; what differs is named with both values."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hgrn2.errors import UserError
from hgrn2.models.config import ModelConfig
from hgrn2.tasks.tune.config import TuneConfig, TuneSettings
from hgrn2.train.config import RunConfig, TrainConfig
from hgrn2.train.same_run import FREE, differences, refuse_other_run

RUN = RunConfig(model=ModelConfig(vocab_size=5, width=128, layers=1, glu_width=16))
OTHER: dict[str, Any] = {
    "sequence_length": 64, "batch_size": 8, "accumulate": 2, "precision": "bfloat16", "average": 0.5, "seed": 7,
    "keep_best": True, "steps": 3, "budget_s": 1.0, "epochs": 2.0, "patience": 1, "log_every": 1, "eval_every": 1,
    "eval_tokens": 9, "save_every": 1, "keep": 1, "spike": 0.0, "compile": True, "compile_blocks": True,
    "graphs": True, "loss": "full", "recompute": "glu", "trackers": ("wandb",), "tracker_project": "mine",
    "profile": (2, 3), "float8": "emulated",
}  # fmt: skip
"""Another value of every setting of the loop: a new one must be given a place here and in `FREE` or not."""


def held(name: str) -> RunConfig:
    """A run in which the setting may have its other value."""
    if name == "graphs":
        return replace(RUN, data=replace(RUN.data, reset_at_documents=False))
    return replace(RUN, train=replace(RUN.train, keep_best=True)) if name == "patience" else RUN


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_every_setting_of_the_loop(name: str) -> None:
    saved = held(name)
    asked = replace(saved, train=replace(saved.train, **{name: OTHER[name]}))
    if name in FREE:
        refuse_other_run(Path("runs/x"), asked, saved)
        return
    with pytest.raises(UserError) as refused:
        refuse_other_run(Path("runs/x"), asked, saved)
    told = str(refused.value)
    assert told.startswith("runs/x holds a run with other settings: train." + name + " is ")
    assert "--restart" in told
    assert "\n" not in told


def test_both_values_and_every_part_are_named() -> None:
    other = replace(
        RUN, model=replace(RUN.model, layers=9), data=replace(RUN.data, source="corpora/mine"),
        optim=replace(RUN.optim, lr=0.5), train=replace(RUN.train, average=0.25, seed=2),
    )  # fmt: skip
    with pytest.raises(UserError) as refused:
        refuse_other_run(Path("r"), other, RUN)
    told = str(refused.value)
    assert f"model.layers is {RUN.model.layers} there and 9 here" in told
    assert 'data.source is "shakespeare" there and "corpora/mine" here' in told
    assert f"optim.lr is {RUN.optim.lr} there and 0.5 here" in told
    assert "and 1 more settings differ" in told


def test_further_texts_may_be_measured_from_any_step_on() -> None:
    asked = replace(RUN, data=replace(RUN.data, validation=("wiki=corpora/wiki",)))
    refuse_other_run(Path("r"), asked, RUN)


def test_another_kind_of_mixer_lists_what_only_one_side_has() -> None:
    assert differences({"a": (1, 2), "b": {"c": 1}}, {"a": [1, 2], "b": {"d": 2}}) != []
    found = {name: (str(mine), str(theirs)) for name, mine, theirs in
             differences({"b": {"c": 1}}, {"b": {"d": 2}})}  # fmt: skip
    assert found == {"b.c": ("1", "absent"), "b.d": ("absent", "2")}
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_state_tuning_compares_where_it_starts() -> None:
    config = TuneConfig(base="m", base_hash="h", model=RUN.model, settings=TuneSettings())
    other = replace(config, settings=replace(config.settings, start_tokens=config.settings.start_tokens + 5))
    with pytest.raises(UserError, match=r"start_tokens is \d+ there and \d+ here"):
        refuse_other_run(Path("r"), other, config)
