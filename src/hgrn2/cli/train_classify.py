"""`hgrn2 train lra` and `hgrn2 train image`: classifiers of sequences and of pictures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from hgrn2 import console
from hgrn2.cli.trained import ended, next_steps, settings_of
from hgrn2.errors import unknown
from hgrn2.settings import refuse, with_overrides

if TYPE_CHECKING:
    from hgrn2.tasks.classify.config import ClassifyRun
    from hgrn2.tasks.classify.run import ClassifyResult

Flag = tyro.conf.FlagCreatePairsOff[bool]
Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
Settings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]
TEXT_IDS = 257  # of the 256 bytes and padding


@dataclass(frozen=True)
class TrainLRA:
    """Train a classifier of sequences on a task of Long Range Arena.

    Its examples are made by `hgrn2 data lra`. The same command goes on where an interrupted run stopped. Writes a run
    folder: config.json, metrics.jsonl, checkpoints/, summary.json, report.html.

    Example: hgrn2 train lra listops --data data/listops --out runs/listops --size small

    Example: hgrn2 train lra text --data data/imdb --model hgrn1 --device cuda --out runs/text-hgrn1
    """

    task: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]]
    """listops, text, retrieval, image, pathfinder or pathx."""
    data: Folder
    """Folder of examples."""
    out: Folder = Path("runs/lra")
    """Run folder, new or of this very run."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "hgrn2"
    """hgrn2, hgrn1 or transformer."""
    size: Literal["full", "fast", "small"] = "full"
    """full: the published settings; fast: ours for ten minutes of an H100; small: minutes on a CPU."""
    set: Settings = ()
    """Any setting of the run, such as train.steps=500 optim.lr=1e-3 train.seed=1."""
    device: str = "auto"
    """auto, cpu or cuda."""
    restart: Flag = False
    """Drop what the folder holds of an earlier run and begin anew."""
    json: Flag = False
    """Print the summary as JSON and show no live view."""

    def run(self) -> int:
        """Returns the exit code: 0, or 130 after Ctrl-C with a checkpoint."""
        from hgrn2.tasks.classify.recipes import LRA, recipe

        if self.task not in LRA:
            raise unknown("task", self.task, LRA)
        run = recipe(self.task, self.model, self.size)
        return _train(run, self.data, self.set, self.out, self.device, self.restart, self.json)


@dataclass(frozen=True)
class TrainImage:
    """Train an image classifier.

    Its examples are made by `hgrn2 data image`. The same command goes on where an interrupted run stopped. Writes a run
    folder: config.json, metrics.jsonl, checkpoints/, summary.json, report.html.

    Example: hgrn2 train image cifar10 --data data/cifar10 --out runs/cifar10 --size small

    Example: hgrn2 train image data/flowers --out runs/flowers
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")]]
    """cifar10, fashion-mnist or imagenet (with --data), or the folder of your own examples."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of examples."""
    out: Folder = Path("runs/image")
    """Run folder, new or of this very run."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "hgrn2"
    """hgrn2, hgrn1 or deit."""
    size: Annotated[
        Literal["full", "fast", "small"] | None,
        tyro.conf.arg(help_behavior_hint="(default: full; of your own pictures small, on a GPU fast)"),
    ] = None
    """full: the tiny model of 12 layers; fast: ours for ten minutes of an H100; small: minutes on a CPU."""
    set: Settings = ()
    """Any setting of the run, such as train.steps=500 model.drop_path=0.1 data.augment.flip=false."""
    device: str = "auto"
    """auto, cpu or cuda."""
    restart: Flag = False
    """Drop what the folder holds of an earlier run and begin anew."""
    json: Flag = False
    """Print the summary as JSON and show no live view."""

    def run(self) -> int:
        """Returns the exit code: 0, or 130 after Ctrl-C with a checkpoint."""
        from hgrn2.tasks.classify.recipes import IMAGES, recipe

        own = self.name not in IMAGES
        folder = Path(self.name) if own and self.data is None else self.data
        known = folder is not None and folder.is_dir()
        refuse(own and not known, f"{self.name!r} is neither {', '.join(IMAGES)} nor a folder of examples")
        refuse(folder is None, f"{self.name} needs its examples: --data FOLDER, made by `hgrn2 data image`")
        assert folder is not None
        if own:
            from hgrn2.models.saved import usable_device
            from hgrn2.tasks.classify.own_images import own_image_run

            size = self.size or ("small" if usable_device(self.device).type == "cpu" else "fast")
            run = own_image_run(folder, self.model, size)
        else:
            run = recipe(self.name, self.model, self.size or "full")
        return _train(run, folder, self.set, self.out, self.device, self.restart, self.json)


def _train(
    run: "ClassifyRun", data: Path, assignments: tuple[str, ...], out: Path, device: str, restart: bool, quiet: bool
) -> int:
    from hgrn2.tasks.classify.run import fit_to_data, train_classifier

    run = fit_to_data(with_overrides(replace(run, data=replace(run.data, folder=str(data))), assignments))
    result = train_classifier(run, out, device=device, restart=restart, quiet=quiet)
    return ended(result, quiet, show_result)


def show_result(result: "ClassifyResult") -> None:
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


def _classify(folder: Path) -> list[tuple[str | Path, ...]]:
    """The command that names classes, for what this model reads: pictures, texts, or what no file holds."""
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
