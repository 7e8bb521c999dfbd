"""`hgrn2 train lra` and `hgrn2 train image`: classifiers of sequences and of images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hgrn2 import console
from hgrn2.cli.trained import Folder, Settings, Training, next_steps, settings_of
from hgrn2.errors import unknown
from hgrn2.settings import refuse, with_overrides

if TYPE_CHECKING:
    from hgrn2.tasks.classify.config import ClassifyRun
    from hgrn2.train.run import RunResult

TEXT_IDS = 257  # of the 256 bytes and padding


@dataclass(frozen=True, kw_only=True)
class TrainClasses(Training):
    """What all verbs share that train classifiers."""

    def train_on(self, run: "ClassifyRun", data: Path) -> "RunResult":
        """Train on a folder of examples, which decides some numbers of the model."""
        from hgrn2.tasks.classify.run import fit_to_data, train_classifier

        run = fit_to_data(with_overrides(replace(run, data=replace(run.data, folder=str(data))), self.set))
        return train_classifier(run, self.out, **self.how)

    def own(self, name: str, choices: dict[str, Any]) -> "ClassifyRun":
        """The user's recipe MODULE:NAME; options that choose among ours must be left at their defaults."""
        from hgrn2.tasks.classify.config import ClassifyRun
        from hgrn2.tasks.named import own_recipe

        for option, default in choices.items():
            refuse(getattr(self, option) != default, f"--{option} chooses among our recipes; {name} is one of your own")
        return own_recipe(name, ClassifyRun)

    def show(self, result: "RunResult") -> None:
        summary = result.summary
        title = f"{summary['task']} after {summary['epochs']:g} epochs, {summary['train_seconds']:.0f} s of training"
        rows = [
            (name, f"{row['examples']:,}", f"{row['accuracy']:.2%}", f"{row['loss']:.4f}")
            for name, row in summary["held_out"].items()
        ]
        caption = f"{summary['parameters']:,} parameters. Data: {summary['origin']}"
        head = ("split", "examples", "accuracy", "nats/example")
        console.show(console.Columns(head, rows, title=title, caption=caption))
        if baseline := summary.get("baseline"):
            print(f"always {baseline['class']!r}, the commonest class in training: {baseline['accuracy']:.2%} right")
        next_steps(result.folder, "curves and settings", ("eval", result.folder), *_classify(result.folder))


@dataclass(frozen=True, kw_only=True)
class TrainLRA(TrainClasses):
    """Train a classifier of sequences on a task of Long Range Arena.

    Its examples are made by `hgrn2 data lra`. The same command goes on where an interrupted run stopped. Writes a run
    folder: config.json, metrics.jsonl, checkpoints/, summary.json, report.html.

    Example: hgrn2 train lra listops --data data/listops --out runs/listops --size small

    Example: hgrn2 train lra text --data data/imdb --model hgrn1 --device cuda --out runs/text-hgrn1
    """

    task: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]]
    """listops, text, retrieval, image, pathfinder or pathx; or MODULE:NAME, a function or value of your own that gives
    a hgrn2.tasks.classify.config.ClassifyRun."""
    data: Folder
    """Folder of examples."""
    out: Folder = Path("runs/lra")
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "hgrn2"
    """hgrn2, hgrn1 or transformer."""
    size: Literal["full", "fast", "small"] = "full"
    """full: the published settings; fast: ours for ten minutes of an H100; small: minutes on a CPU."""
    set: Settings = ()
    """Any setting of the run, such as train.steps=500 optim.lr=1e-3 train.seed=1."""

    def train(self) -> "RunResult":
        from hgrn2.tasks.classify.recipes import LRA, recipe
        from hgrn2.tasks.named import is_own

        if is_own(self.task):
            return self.train_on(self.own(self.task, {"model": "hgrn2", "size": "full"}), self.data)
        if self.task not in LRA:
            raise unknown("task", self.task, LRA)
        return self.train_on(recipe(self.task, self.model, self.size), self.data)


@dataclass(frozen=True, kw_only=True)
class TrainImage(TrainClasses):
    """Train an image classifier.

    Its examples are made by `hgrn2 data image`. The same command goes on where an interrupted run stopped. Writes a run
    folder: config.json, metrics.jsonl, checkpoints/, summary.json, report.html.

    Example: hgrn2 train image cifar10 --data data/cifar10 --out runs/cifar10 --size small

    Example: hgrn2 train image data/flowers --out runs/flowers
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")]]
    """cifar10, fashion-mnist or imagenet (with --data), the folder of your own examples, or (with --data) MODULE:NAME,
    a function or value of your own that gives a hgrn2.tasks.classify.config.ClassifyRun."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of examples."""
    out: Folder = Path("runs/image")
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "hgrn2"
    """hgrn2, hgrn1 or deit."""
    size: Annotated[
        Literal["full", "fast", "small"] | None,
        tyro.conf.arg(help_behavior_hint="(default: full; of your own images small, on a GPU fast)"),
    ] = None
    """full: the tiny model of 12 layers; fast: ours for ten minutes of an H100; small: minutes on a CPU."""
    set: Settings = ()
    """Any setting of the run, such as train.steps=500 model.drop_path=0.1 data.augment.flip=false."""

    def train(self) -> "RunResult":
        from hgrn2.tasks.classify.recipes import IMAGES, recipe
        from hgrn2.tasks.named import is_own

        named = is_own(self.name)
        mine = not named and self.name not in IMAGES
        folder = Path(self.name) if mine and self.data is None else self.data
        known = folder is not None and folder.is_dir()
        refuse(mine and not known, f"{self.name!r} is neither {', '.join(IMAGES)} nor a folder of examples")
        refuse(folder is None, f"{self.name} needs its examples: --data FOLDER, made by `hgrn2 data image`")
        assert folder is not None
        if named:
            return self.train_on(self.own(self.name, {"model": "hgrn2", "size": None}), folder)
        if mine:
            return self.train_on(self.of_folder(folder), folder)
        return self.train_on(recipe(self.name, self.model, self.size or "full"), folder)

    def of_folder(self, folder: Path) -> "ClassifyRun":
        """A run for one's own images, as large as the device allows."""
        from hgrn2.models.saved import usable_device
        from hgrn2.tasks.classify.own_images import own_image_run

        size = self.size or ("small" if usable_device(self.device).type == "cpu" else "fast")
        return own_image_run(folder, self.model, size)


def _classify(folder: Path) -> list[tuple[str | Path, ...]]:
    """The command that names classes, for what this model reads: images, texts, or what no file holds."""
    values = settings_of(folder)
    model, kind = values.get("model", {}), values.get("data", {}).get("own", {}).get("kind")
    if kind in ("text", "numbers"):
        return [
            *([("classify", folder, "--text", "A text.")] if kind == "text" else []),
            ("classify", folder, "new.csv"),
        ]
    if "image_size" in model:
        return [("classify", folder, "PICTURE.png")]
    return (
        [("classify", folder, "--text", "A text.")]
        if model.get("vocab_size") == TEXT_IDS and not model.get("pair")
        else []
    )
