"""Runs that go wrong stop with one line and keep the last good checkpoint; learning rates follow their statement."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.errors import UserError
from hgrn2.models.language import LanguageModel
from hgrn2.tasks.lm.task import LanguageTask
from hgrn2.train.config import OptimConfig, TrainConfig
from hgrn2.train.guard import LossGuard
from hgrn2.train.schedule import lr_share, progress_of

TINY = (
    "train.budget_s=0", "train.sequence_length=16", "train.batch_size=2", "train.log_every=1", "train.eval_every=0",
    "train.eval_tokens=100", "model.width=16", "model.layers=1", "model.glu_width=16", "model.mixer.head_size=16",
)  # fmt: skip


def test_nan_stops_at_once() -> None:
    guard = LossGuard(spike=2.0)
    guard.check(1, 3.0, 1.0, "x")
    with pytest.raises(UserError, match=r"loss became nan at step 2; the last good checkpoint is step-1"):
        guard.check(2, math.nan, 1.0, "the last good checkpoint is step-1")
    with pytest.raises(UserError, match="gradient norm became inf"):
        guard.check(3, 3.0, math.inf, "x")


def test_one_spike_passes_and_a_plateau_stops() -> None:
    guard = LossGuard(spike=2.0, patience=5)
    for step in range(10):
        guard.check(step, 2.0, 1.0, "x")
    guard.check(10, 9.0, 1.0, "x")
    guard.check(11, 2.0, 1.0, "x")
    for step in range(12, 16):
        guard.check(step, 9.0, 1.0, "x")
    with pytest.raises(UserError, match=r"stayed more than 2 nats above its usual 2\.000"):
        guard.check(16, 9.0, 1.0, "x")
    assert guard.accepted.count(9.0) == 0


def test_guard_state_survives() -> None:
    guard, copy = LossGuard(spike=1.0), LossGuard(spike=1.0)
    for step in range(30):
        guard.check(step, 1.0 + 3.0 * (step > 25), 1.0, "x")
    copy.load(guard.state())
    assert copy.high == guard.high == 4
    assert list(copy.accepted) == list(guard.accepted)


def test_a_run_that_breaks_keeps_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sound, calls = tmp_path / "run", LanguageTask.loss, []

    def breaks(self: LanguageTask, model: LanguageModel, batch: tuple) -> torch.Tensor:  # type: ignore[type-arg]
        if not model.training:
            return sound(self, model, batch)
        calls.append(1)
        return sound(self, model, batch) * (math.nan if len(calls) == 8 else 1.0)

    monkeypatch.setattr(LanguageTask, "loss", breaks)
    command = [
        "train",
        "lm",
        "demo",
        "--out",
        str(folder),
        "--set",
        *TINY,
        "train.steps=40",
        "train.save_every=3",
        "train.keep=2",
    ]
    assert entry([*command, "train.log_every=20"]) == 2
    error = capsys.readouterr().err
    assert "the loss became nan at step 9; the last good checkpoint is step-00000006" in error
    assert "Traceback" not in error
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert entry(["eval", str(folder), "--limit-tokens", "200"]) == 0


@pytest.mark.parametrize(
    ("schedule", "step", "progress", "share"),
    [
        ("cosine", 0, 0.0, 0.1),
        ("cosine", 9, 0.0, 1.0),
        ("cosine", 50, 0.5, 0.55),
        ("cosine", 99, 1.0, 0.1),
        ("linear", 50, 0.5, 0.55),
        ("linear", 99, 1.0, 0.1),
        ("constant", 99, 1.0, 1.0),
        ("wsd", 4, 0.04, 0.5),
        ("wsd", 90, 0.9, 1.0),
        ("wsd", 95, 0.925, 0.1 + 0.9 * 0.5),
        ("wsd", 99, 1.0, 0.1),
        ("inverse_sqrt", 39, 0.4, 0.5),
        ("inverse_sqrt", 4, 0.0, 0.5),
    ],
)
def test_learning_rate(schedule: str, step: int, progress: float, share: float) -> None:
    config = OptimConfig(schedule=schedule, warmup_steps=10, final_lr_ratio=0.1)  # type: ignore[arg-type]
    assert lr_share(config, step, progress) == pytest.approx(share, rel=1e-9)


def test_the_decay_of_wsd_has_its_shape_and_may_be_none() -> None:
    linear = OptimConfig(schedule="wsd", warmup_steps=0, decay_share=0.5, decay_shape="linear", final_lr_ratio=0.0)
    assert [lr_share(linear, 9, x) for x in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert lr_share(replace(linear, decay_share=0.0), 9, 1.0) == 1.0
    assert lr_share(replace(linear, decay_share=1.0), 9, 0.25) == pytest.approx(0.75)
    by_time = progress_of(TrainConfig(steps=1000, budget_s=100.0), 1000, 10, 75.0)
    assert lr_share(linear, 10, by_time, by_clock=True) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch_size": 6, "accumulate": 4}, {"budget_s": -1.0}, {"precision": "float8"}, {"keep": 0}],
)
def test_impossible_settings_are_refused(wrong: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError) as error:
        TrainConfig(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step", "progress", "share"),
    [
        (0, 0.0, 0.05 * 1.0),
        (4, 0.01, 0.25 * 0.99),  # a fast machine: by steps
        (1, 0.02, 0.4 * 0.98),  # a slow one: by the clock
        (2, 0.05, 0.95),
        (3, 0.5, 0.5),
        (4, 1.0, 0.0),
    ],
)
def test_warm_up_ends_in_time_where_the_clock_decides(step: int, progress: float, share: float) -> None:
    config = OptimConfig(schedule="linear", warmup_steps=20, warmup_share=0.05, final_lr_ratio=0.0)
    assert lr_share(config, step, progress, by_clock=True) == pytest.approx(share, abs=1e-9)
    assert lr_share(config, step, progress) == pytest.approx((step + 1) / 20 * (1 - progress))
