"""The one runner: a task in forty lines, what every summary has, and settings that are read or refused by name."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from hgrn2.cli.main import entry
from hgrn2.data.classes import Described, Examples, write_examples
from hgrn2.errors import UserError
from hgrn2.generate.loading import load
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.settings import settings, to_dict, with_overrides
from hgrn2.tasks.classify.recipes import recipe as classifier
from hgrn2.tasks.classify.run import fit_to_data, train_classifier
from hgrn2.tasks.lm.recipes import recipe
from hgrn2.tasks.lm.run import fit_vocabulary, train_language
from hgrn2.tasks.mqar.recipes import changed
from hgrn2.tasks.mqar.recipes import recipe as recall
from hgrn2.tasks.mqar.run import train_mqar
from hgrn2.tasks.tune.config import TuneSettings
from hgrn2.tasks.tune.run import tune_state
from hgrn2.train.config import OptimConfig, TrainConfig
from hgrn2.train.run import RunResult, refuse_unread, train
from hgrn2.train.task import Outcome, Task

SMALL = ModelConfig(vocab_size=7, width=8, layers=1, glu_width=8, mixer=MixerConfig(head_size=4))
SHORT = (
    "train.steps=2", "train.batch_size=2", "train.budget_s=0", "train.eval_every=1", "train.save_every=1",
    "train.eval_tokens=64", "model.width=8", "model.layers=1", "model.glu_width=8", "model.mixer.head_size=4",
)  # fmt: skip


@settings
class CopyData:
    """Which texts."""

    seed: int = 0


@settings
class CopyRun:
    """Random tokens, each of which is to be named again."""

    unread: ClassVar[Mapping[str, str]] = {"train.loss": "copies are few"}
    frozen: ClassVar[bool] = False
    kind: Literal["copy"] = "copy"
    model: ModelConfig = SMALL
    data: CopyData = field(default_factory=CopyData)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=4, batch_size=2, sequence_length=6, spike=0))
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def shortest(self) -> int:
        return self.train.sequence_length


class CopyTask(Task):
    assets = ("notes.txt",)

    def __init__(self, run: CopyRun, device: torch.device, told: dict[str, Any]) -> None:
        self.run, self.device, self.told = run, device, told
        self.tokens_per_step, self.data_identity = run.train.tokens_per_step, ""

    def model(self) -> LanguageModel:
        return LanguageModel(self.run.model).to(self.device)

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor]:
        random = torch.Generator().manual_seed(1000 * self.run.data.seed + step)
        return (torch.randint(0, self.run.model.vocab_size, (2, 6), generator=random),)

    def epochs(self, steps: int) -> float:
        return steps / 8

    def loss(self, model: LanguageModel, batch: tuple[Tensor]) -> Tensor:
        return model.loss(batch[0], batch[0])

    def evaluate(self, model: LanguageModel) -> dict[str, float | None]:
        return {"loss": float(self.loss(model, self.batch(99, 0, 1))), "bits_per_byte": None}

    def finish(self, model: LanguageModel, folder: Path) -> Outcome:
        with torch.no_grad():
            found = self.evaluate(model)
        return Outcome(held_out={"copies": dict(found)}, report=self.report, facts={"kinds": 7}, samples=("abc",))

    def report(self, folder: Path, /, **told: Any) -> None:
        self.told |= told
        (folder / "report.html").write_text("copied")

    def save_assets(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("mine")


def copied(run: CopyRun, folder: Path, told: dict[str, Any] | None = None, **more: Any) -> RunResult:
    found: dict[str, Any] = {} if told is None else told
    return train(run, lambda place: CopyTask(run, place, found), folder, device="cpu", quiet=True, **more)


def test_a_task_from_outside_is_carried_out(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    result = copied(CopyRun(), tmp_path / "run", told)
    assert (result.step, result.interrupted, result.samples) == (4, False, ("abc",))
    assert set(result.summary) == {
        "parameters", "steps", "tokens", "epochs", "train_seconds", "eval_seconds", "kinds", "held_out",
    }  # fmt: skip
    assert result.summary["parameters"] == sum(p.numel() for p in LanguageModel(SMALL).parameters())
    assert (result.summary["tokens"], result.summary["epochs"]) == (4 * 2 * 6, 0.5)
    assert told["config"] == to_dict(CopyRun())
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == json.loads(json.dumps(told["config"]))
    assert told["summary"] == result.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [one["kind"] for one in told["metrics"]][-1] == "eval"
    assert told["environment"]["torch"]


def test_the_seed_decides_the_first_weights_and_a_longer_run_goes_on(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = copied(CopyRun(), tmp_path / "whole").summary["held_out"]
    short = CopyRun(train=replace(CopyRun().train, steps=2), optim=replace(CopyRun().optim, schedule="constant"))
    longer = replace(short, train=CopyRun().train)
    at_once = copied(longer, tmp_path / "at_once").summary["held_out"]
    copied(short, tmp_path / "parts")
    assert copied(longer, tmp_path / "parts").summary["held_out"] == at_once != whole
    assert copied(CopyRun(), tmp_path / "whole", restart=True).summary["held_out"] == whole
    assert (tmp_path / "whole" / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"data.seed is 0 there and 1 here"):
        copied(CopyRun(data=CopyData(seed=1)), tmp_path / "whole")


def test_what_is_not_read_is_refused_unless_the_folder_has_it_already(tmp_path: Path) -> None:
    other = replace(CopyRun(), train=replace(CopyRun().train, loss="full"))
    with pytest.raises(UserError) as refused:
        copied(other, tmp_path / "run")
    assert str(refused.value) == "train.loss is 'full', but copies are few: leave it at 'auto'"
    assert not (tmp_path / "run").exists()
    copied(CopyRun(), tmp_path / "run")
    with pytest.raises(UserError, match="copies are few"):
        copied(other, tmp_path / "run")
    config = tmp_path / "run" / "config.json"  # as an earlier version wrote it, which took the setting in silence
    config.write_text(config.read_text().replace('"loss": "auto"', '"loss": "full"'))
    assert copied(other, tmp_path / "run").step == 4
    with pytest.raises(UserError, match="copies are few"):
        copied(other, tmp_path / "run", restart=True)


@dataclass(frozen=True)
class Kind:
    """A way to train: a run with the given settings of the loop, and what carries it out."""

    loop: TrainConfig
    unread: Mapping[str, str]
    train: Callable[[TrainConfig, Path], RunResult]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    random = torch.Generator().manual_seed(0)
    made = {
        name: Examples(
            a=torch.randint(0, 256, (count, 8, 8, 3), generator=random, dtype=torch.uint8).numpy(),
            labels=(torch.arange(count) % 3).numpy(),
        )
        for name, count in (("train", 12), ("valid", 6), ("test", 6))
    }
    described = Described(task="spots", classes=("a", "b", "c"), vocab_size=256, origin="nowhere")
    write_examples(folder, described, made)
    return folder


@pytest.fixture(scope="module")
def kinds(tiny_corpus: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    base = tmp_path_factory.mktemp("runs") / "base"
    lm = recipe("demo")
    lm = replace(lm, data=replace(lm.data, source=str(tiny_corpus)))
    lm = fit_vocabulary(with_overrides(lm, (*SHORT, "train.sequence_length=8")))
    few = ("data.train=16x2x8", "data.test=16x2x4", "model.vocab_size=16")
    mqar = changed(recall("small"), assignments=(*SHORT, *few))
    seen = classifier("cifar10", "hgrn2", "small")
    seen = replace(seen, data=replace(seen.data, folder=str(images)))
    seen = fit_to_data(with_overrides(seen, (*SHORT, "model.norm=layer", "data.augment.crop_padding=1")))
    train_language(lm, base, device="cpu", quiet=True)
    tune = with_overrides(TuneSettings(), tuple(one for one in SHORT if one.startswith("train.")))
    tune = replace(tune, data=lm.data, train=replace(tune.train, sequence_length=8))

    def of(run: Any, front: Any) -> Kind:
        return Kind(run.train, run.unread, lambda loop, folder: front(replace(run, train=loop), folder, quiet=True))

    return {
        "lm": of(lm, train_language),
        "mqar": of(mqar, train_mqar),
        "classify": of(seen, train_classifier),
        "tune": of(tune, lambda run, folder, quiet: tune_state(load(base, "cpu"), run, folder, quiet=quiet)),
    }


class Watched(TrainConfig):
    """Settings that know which of them the trainer and a task asked for; looking all through counts for nothing."""

    def __getattribute__(self, name: str) -> Any:
        caller = sys._getframe(1)
        module, function = caller.f_globals.get("__name__", ""), caller.f_code.co_name
        looks_through = module in ("hgrn2.train.config", "hgrn2.train.same_run") or function == "_setting"
        if module.startswith(("hgrn2.train.", "hgrn2.tasks.")) and not looks_through:
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


@pytest.mark.parametrize("kind", ["lm", "mqar", "classify", "tune"])
def test_every_setting_of_the_loop_is_read_or_refused(kind: str, kinds: dict[str, Kind], tmp_path: Path) -> None:
    one = kinds[kind]
    READ.clear()
    assert one.train(Watched(**to_dict(one.loop)), tmp_path / "run").step == 2
    refused = {name.removeprefix("train.") for name in one.unread}
    assert {field.name for field in fields(TrainConfig)} - READ - refused == set()


OTHER = {"train.loss": "chunked", "train.compile": True, "train.float8": "emulated"}


@pytest.mark.parametrize("kind", ["mqar", "classify", "tune"])
def test_what_a_kind_does_not_read_is_refused_by_name(kind: str, kinds: dict[str, Kind], tmp_path: Path) -> None:
    one = kinds[kind]
    names = [name for name in one.unread if name.startswith("train.")]
    assert names
    for name in names:
        with pytest.raises(UserError, match=rf"^{re.escape(name)} is .*: leave it at "):
            one.train(replace(one.loop, **{name.removeprefix("train."): OTHER[name]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_muon_needs_matrices_of_blocks(optimizer: Literal["muon", "adamw"], tmp_path: Path) -> None:
    from hgrn2.train.optim import Optimizers

    config = OptimConfig(optimizer=optimizer)
    if optimizer == "adamw":
        assert len(Optimizers(nn.Linear(2, 2), config).parts) == 1
        return
    with pytest.raises(UserError, match=r"optim.optimizer=muon is for matrices in blocks of ours"):
        Optimizers(nn.Linear(2, 2), config)


def test_settings_of_images_and_of_sequences(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "image", str(images), "--out", str(tmp_path / "run"), "--device", "cpu", "--set"]
    assert entry([*command, "data.drop_tokens=0.1"]) == 2
    assert "data.drop_tokens is 0.1, but images have no padding" in capsys.readouterr().err
    rows = "".join(f"{'ab' * (n % 2 + 1)},{n % 2}\n" for n in range(20))
    (tmp_path / "t.csv").write_text(f"text,label\n{rows}")
    command = ["train", "classify", str(tmp_path / "t.csv"), "--tokenizer", "bytes", "--out", str(tmp_path / "run")]
    assert entry([*command, "--device", "cpu", "--set", "data.augment.flip=true"]) == 2
    assert "data.augment.flip is True, but only images are changed: leave it at False" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_setting_at_its_default_is_never_refused() -> None:
    refuse_unread(CopyRun(), CopyRun.unread, {})
