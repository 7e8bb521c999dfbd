"""A run ends with the weights that were measured best, stops when nothing better comes, and resumes exactly."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import load_model
from hgrn2.tasks.lm.recipes import recipe
from hgrn2.train.best import BestWeights
from hgrn2.train.checkpoint import newest_whole, read
from hgrn2.train.config import OptimConfig, RunConfig, TrainConfig
from hgrn2.train.metrics import read_metrics
from hgrn2.train.task import Task
from hgrn2.train.trainer import Trainer
from hgrn2.train.view import TrainView

MODEL = ModelConfig(vocab_size=11, width=16, layers=2, glu_width=16, dropout=0.1, mixer=MixerConfig(head_size=8))


class Words(Task):
    """Random tokens, and held-out losses that are given."""

    tokens_per_step = 16
    data_identity = ""

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses, self.measured = losses, []  # type: ignore[var-annotated]

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(step))
        return tokens[:, :-1], tokens[:, 1:]

    def epochs(self, steps: int) -> float:
        return steps / 4

    def loss(self, model: LanguageModel, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model.loss(*batch)

    def evaluate(self, model: LanguageModel) -> dict[str, Any]:
        self.measured.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"loss": self.losses[len(self.measured) - 1]}


def trainer_of(folder: Path, losses: Sequence[float], **options: Any) -> Trainer:
    train = TrainConfig(**{"steps": 12, "eval_every": 2, "save_every": 2, "log_every": 1, "keep": 20, **options})
    torch.manual_seed(0)
    run = RunConfig(model=MODEL, train=train, optim=OptimConfig(optimizer="muon", lr=1e-2, warmup_steps=0))
    return Trainer(run, Words(losses), LanguageModel(MODEL), folder)  # type: ignore[abstract]


def fit(trainer: Trainer) -> None:
    trainer.fit(TrainView("", quiet=True))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def steps_measured(folder: Path) -> list[int]:
    return [r["step"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "eval"]


WORSE_LATER = (3.0, 2.0, 1.0, 1.5, 1.4, 1.3)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_best_weights_are_saved_and_kept(average: float, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WORSE_LATER, keep_best=True, average=average)
    fit(trainer)
    best = trainer.task.measured[2]  # type: ignore[attr-defined]
    assert steps_measured(tmp_path) == [2, 4, 6, 8, 10, 12]
    assert same(dict(trainer.model.state_dict()), best)
    saved = load_file(tmp_path / "checkpoints/step-00000012/model.safetensors")
    assert same(saved, best)
    assert trainer.best is not None
    assert (trainer.best.step, trainer.best.loss, trainer.best.waited) == (6, 1.0, 3)


def test_without_the_option_the_last_weights_are_kept(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WORSE_LATER)
    fit(trainer)
    assert same(dict(trainer.model.state_dict()), trainer.task.measured[-1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("at", [2, 6, 8, 10])
def test_a_resumed_run_ends_with_the_same_bits(at: int, average: float, tmp_path: Path) -> None:
    options = {"keep_best": True, "average": average}
    whole = trainer_of(tmp_path / "whole", WORSE_LATER, **options)
    fit(whole)
    resumed = trainer_of(tmp_path / "resumed", WORSE_LATER[at // 2 :], **options)
    resumed.resume(read(tmp_path / f"whole/checkpoints/step-{at:08d}", resumed.model))
    fit(resumed)
    for name in ("model.safetensors", "optimizer.safetensors"):
        path = f"checkpoints/step-00000012/{name}"
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "resumed" / path).read_bytes()
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


def test_a_run_that_was_over_gives_its_best_weights_again(tmp_path: Path) -> None:
    first = trainer_of(tmp_path, WORSE_LATER, keep_best=True)
    fit(first)
    again = trainer_of(tmp_path, (), keep_best=True)
    again.resume(read(tmp_path / "checkpoints/step-00000012", again.model))
    assert again.finished
    fit(again)
    assert same(dict(again.model.state_dict()), dict(first.model.state_dict()))


def test_a_checkpoint_whose_weights_are_the_best_holds_them_once(tmp_path: Path) -> None:
    fit(trainer_of(tmp_path, WORSE_LATER, keep_best=True))
    for at, twice in ((6, False), (8, True)):
        names = load_file(tmp_path / f"checkpoints/step-{at:08d}/optimizer.safetensors")
        assert any(name.startswith("latest/") for name in names) == twice


def test_patience_ends_a_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WORSE_LATER, keep_best=True, patience=2)
    fit(trainer)
    assert trainer.step == 10
    assert steps_measured(tmp_path) == [2, 4, 6, 8, 10]
    again = trainer_of(tmp_path, (), keep_best=True, patience=2)
    again.resume(read(tmp_path / "checkpoints/step-00000010", again.model))
    assert again.finished, "a run that is over stays so"


def test_passes_over_the_data_end_a_run_and_its_schedule(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, [2.0] * 9, epochs=1.3, budget_s=1000.0)
    fit(trainer)
    assert trainer.step == 6, "4 steps per pass"
    rates = [r["lr"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "step"]
    assert rates[0] > 5 * rates[-1]


@pytest.mark.parametrize(("steps", "every"), [(10, 250), (30, 10), (3, 250)])
def test_a_run_is_measured_at_least_five_times(steps: int, every: int, tmp_path: Path) -> None:
    fit(trainer_of(tmp_path, [2.0] * 40, steps=steps, eval_every=every, save_every=0))
    assert len(steps_measured(tmp_path)) >= min(5, steps)
    assert steps_measured(tmp_path)[-1] == steps


def test_a_run_by_the_clock_is_measured_at_every_fifth_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, [2.0] * 40, steps=10_000, eval_every=5_000, save_every=0, budget_s=100.0)
    now, step = [0.0], trainer._train_step
    monkeypatch.setattr("hgrn2.train.trainer.time.perf_counter", lambda: now[0])

    def seven_seconds() -> None:
        now[0] += 7
        step()

    trainer._train_step = seven_seconds  # type: ignore[method-assign]
    trainer._clock = 0.0
    fit(trainer)
    assert steps_measured(tmp_path) == [3, 6, 9, 12, 15]


def test_eval_every_0_leaves_the_last_measurement(tmp_path: Path) -> None:
    fit(trainer_of(tmp_path, [2.0], eval_every=0))
    assert steps_measured(tmp_path) == [12]


def test_what_is_not_a_number_is_never_the_best() -> None:
    model = nn.Linear(2, 2)
    best = BestWeights(model)
    best.measured(1, math.nan)
    with best.in_place() as behind:
        assert behind == {}
    assert json.loads(json.dumps(best.state(), allow_nan=False)) == {"loss": None, "step": 0, "waited": 1}
    best.measured(2, 3.0)
    best.measured(3, math.inf)
    assert (best.loss, best.step, best.waited) == (3.0, 2, 1)


def spoil_weights(model: LanguageModel, trainer: Trainer) -> None:
    model.embedding.weight[3, 5] = math.inf


def spoil_states(model: LanguageModel, trainer: Trainer) -> None:
    optimizer = trainer.optimizers.parts[1][0]
    optimizer.state[next(iter(optimizer.state))]["momentum_buffer"][0, 0] = math.nan


def make_huge(model: LanguageModel, trainer: Trainer) -> None:
    for parameter in model.parameters():
        parameter.mul_(1e30)  # finite, and so is the loss behind norms, but no gradient


def make_large(model: LanguageModel, trainer: Trainer) -> None:
    for parameter in model.parameters():
        parameter.mul_(1e16)  # finite, and so are their squares, but no product of three


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, "not finite in embedding.weight; the last good checkpoint is step-00000006"),
        (spoil_states, "momentum_buffer; the last good checkpoint is step-00000006"),
        (make_huge, "too large or not finite in embedding.weight and"),
        (make_large, "the loss after the update of step 8 is nan; the last good checkpoint is step-00000006"),
    ],
)
def test_what_an_update_spoilt_is_not_saved_as_good(
    spoil: Callable[[LanguageModel, Trainer], None], message: str, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, [2.0] * 9)
    update = trainer.optimizers.step

    def spoiling() -> None:
        update()
        if trainer.step == 7:  # counted after the update: this is that of step 8
            with torch.no_grad():
                spoil(trainer.model, trainer)  # type: ignore[arg-type]

    trainer.optimizers.step = spoiling  # type: ignore[method-assign]
    with pytest.raises(UserError, match=message):
        fit(trainer)
    newest, problems = newest_whole(tmp_path, LanguageModel(MODEL))
    assert newest is not None
    assert newest.folder.name == "step-00000006"
    assert not problems
    logits, _ = load_model(newest.folder)(torch.arange(11)[None])  # type: ignore[operator]
    assert logits.isfinite().all()


def test_one_layer_has_no_lower_bound_to_learn(tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig(vocab_size=11, width=16, layers=1, glu_width=16, mixer=MixerConfig(head_size=8)))
    tokens = torch.arange(11)[None]
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    assert "backbone.lower_bounds" in model.state_dict(), "as in checkpoints of earlier versions"
    two = LanguageModel(MODEL).backbone.lower_bounds
    assert two is not None
    assert two.requires_grad


def test_the_short_recipes_end_with_the_best_weights_of_few_passes() -> None:
    for name in ("demo", "small"):
        train = recipe(name).train
        assert train.keep_best
        assert train.patience
        assert train.epochs


def test_patience_needs_the_best_weights() -> None:
    with pytest.raises(UserError, match="keep_best"):
        TrainConfig(patience=3)


def test_a_checkpoint_that_no_trainer_wrote_is_passed_over(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WORSE_LATER, steps=4, keep_best=True)
    fit(trainer)
    newest = tmp_path / "checkpoints" / "step-00000004"
    kept = json.loads((newest / "trainer.json").read_text())
    wrong: list[Any] = [
        [], None, {**kept, "guard": None}, {**kept, "step": 3}, {**kept, "elapsed_s": "1"},
        {**kept, "guard": {"high": 0}}, {**kept, "best": None}, {**kept, "best": {"loss": 1.0}},
        {key: kept[key] for key in kept if key != "best"},
        {**kept, "guard": {"high": 0, "accepted": [None]}},
    ]  # fmt: skip
    for values in wrong:
        change(newest, "trainer.json", json.dumps(values).encode())
        found, problems = newest_whole(tmp_path, trainer.model, trainer.needs)  # type: ignore[arg-type]
        assert found is not None, values
        assert found.folder.name == "step-00000002", values
        assert len(problems) == 1
        assert "trainer.json" in problems[0]
    change(newest, "trainer.json", json.dumps(kept).encode())
    change(newest, "optimizer.safetensors", b"no tensors")
    found, problems = newest_whole(tmp_path, trainer.model, trainer.needs)  # type: ignore[arg-type]
    assert found is not None
    assert found.folder.name == "step-00000002"
    assert "optimizer.safetensors is damaged or not a safetensors file" in problems[0]


def change(folder: Path, name: str, data: bytes) -> None:
    """Another content of a checkpoint's file, with its size and checksum in the manifest."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_damaged_checkpoint_of_the_same_step_is_written_anew(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WORSE_LATER, steps=2)
    fit(trainer)
    weights = tmp_path / "checkpoints" / "step-00000002" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    trainer.save()
    assert weights.read_bytes() == good
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_other_data_in_the_same_place_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WORSE_LATER, steps=2)
    fit(trainer)
    again = trainer_of(tmp_path, WORSE_LATER, steps=4)
    again.task.data_identity = "another"
    with pytest.raises(UserError, match="was trained on other data than now lies in its place"):
        again.resume(read(tmp_path / "checkpoints" / "step-00000002", again.model))
