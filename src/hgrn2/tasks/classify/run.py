"""A run of classification from beginning to end: folder, resume, training, accuracy on held-out splits, report."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn2 import cpu
from hgrn2.data.classes import Described, Examples, open_examples
from hgrn2.files import owned, read_json, write_json
from hgrn2.models.saved import build_classifier, usable_device
from hgrn2.report.classified import Classified
from hgrn2.report.write import write_report
from hgrn2.settings import refuse, to_dict
from hgrn2.tasks.classify import own
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.classify.own import Prepared
from hgrn2.tasks.classify.task import ClassifyTask, Measured, ask, fitted, measure
from hgrn2.train.fitting import check_run
from hgrn2.train.metrics import read_metrics
from hgrn2.train.runs import prepare_folder
from hgrn2.train.runs import train as train_to_end
from hgrn2.train.same_run import refuse_other_run
from hgrn2.train.trainer import Trainer


@dataclass(frozen=True)
class ClassifyResult:
    """What a run ended with."""

    folder: Path
    interrupted: bool
    step: int
    summary: dict[str, Any]
    """As in summary.json: parameters, steps, epochs, seconds, and `held_out` with accuracy and loss by split."""


def train_classifier(
    run: ClassifyRun, folder: Path, *, device: str = "auto", restart: bool = False, quiet: bool = False,
    prepared: Prepared | None = None,
) -> ClassifyResult:  # fmt: skip
    """Train in `folder`, or go on where an interrupted run stopped; arguments as in `train_language`.

    `prepared` are one's own examples instead of those of the run's folder of data; they are written into the run
    folder.

    Raises:
        UserError: data that is missing, damaged or does not fit the model.
    """
    place = usable_device(device)
    if place.type == "cpu":
        cpu.keep_freed_memory()
    check_run(run.model, run.train, place, 1)
    described, splits = (prepared.described, prepared.splits) if prepared else open_splits(run)
    task = ClassifyTask(run, described, splits, place)
    with owned(folder):
        return _train(run, task, described, folder, restart, quiet, prepared)


def _train(
    run: ClassifyRun, task: ClassifyTask, described: Described, folder: Path, restart: bool, quiet: bool,
    prepared: Prepared | None,
) -> ClassifyResult:  # fmt: skip
    """Train in a folder that no other process works in."""
    if prepared and not restart:
        own.check(folder, prepared)
    assets = (own.EXAMPLES, "tokenizer")
    prepare_folder(folder, run, partial(refuse_other_run, folder, run), restart=restart, assets=assets)
    if prepared:
        own.keep(folder, prepared)
    torch.manual_seed(run.train.seed)
    model = build_classifier(run.model).to(task.device)
    model.set_recompute(run.train.recompute)
    trainer = Trainer(run, task, model, folder)
    train_to_end(trainer, trainer.view(quiet))
    if trainer.interrupted:
        return ClassifyResult(folder, True, trainer.step, {})
    return _finish(run, trainer, task, described)


def open_splits(run: ClassifyRun) -> tuple[Described, dict[str, Examples]]:
    """What the run's folder of examples is, and the splits that the run names."""
    data = run.data
    refuse(not data.folder, f"{run.task} needs a folder of examples: --data FOLDER (see `hgrn2 data --help`)")
    opened = open_examples(data.folder)
    easy = (data.curriculum.split,) if data.curriculum.steps else ()
    lacking = bool(easy) and easy[0] not in opened.manifest["splits"]
    hint = "make them with hgrn2 data lra ... --easy N, or give --set data.curriculum.steps=0"
    refuse(lacking, f"{data.folder} has no easier examples to begin with (split {data.curriculum.split!r}); {hint}")
    names = dict.fromkeys((data.train_split, data.valid_split, data.test_split, *easy))
    return opened.described, {name: opened.split(name) for name in names}


def fit_to_data(run: ClassifyRun) -> ClassifyRun:
    """The run with the classes, vocabulary, channels and image size of its data."""
    described, splits = open_splits(run)
    fields = fitted(run.model, described, splits[run.data.train_split], grey=run.data.grey)
    return replace(run, model=replace(run.model, **fields))


def _finish(run: ClassifyRun, trainer: Trainer, task: ClassifyTask, described: Described) -> ClassifyResult:
    began = time.perf_counter()
    with trainer.evaluating():
        measured = {
            name: measure(trainer.model, task.splits[name], run, task.device)
            for name in dict.fromkeys((run.data.valid_split, run.data.test_split))
        }
        seen = ask(trainer.model, task.splits[run.data.test_split], run, described.classes, task.device)
    baseline = _baseline(task, described.classes)
    summary = {
        "task": run.task,
        "origin": described.origin,
        "classes": list(described.classes),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.step,
        "epochs": round(task.epochs(trainer.step), 2),
        "train_seconds": round(trainer.elapsed_s, 1),
        "eval_seconds": round(time.perf_counter() - began, 1),
        "held_out": {name: _values(one) for name, one in measured.items()},
        "baseline": baseline,
    }
    folder = trainer.folder
    write_json(folder / "summary.json", summary)
    write_report(
        folder, config=to_dict(run), environment=read_json(folder / "environment.json"),
        metrics=read_metrics(folder / "metrics.jsonl"), summary=summary, samples=[], gates=None, seen=seen,
        classified=Classified(
            split=run.data.test_split, classes=described.classes, confusion=measured[run.data.test_split].confusion,
            baseline=baseline["accuracy"],
        ),
    )  # fmt: skip
    return ClassifyResult(folder, False, trainer.step, summary)


def _baseline(task: ClassifyTask, classes: tuple[str, ...]) -> dict[str, Any]:
    """What naming the commonest class of the training examples every time comes to on the last split."""
    data = task.run.data
    commonest = int(np.bincount(task.splits[data.train_split].labels).argmax())
    share = float((np.asarray(task.splits[data.test_split].labels) == commonest).mean())
    return {"class": classes[commonest], "accuracy": share}


def _values(found: Measured) -> dict[str, Any]:
    values = {"examples": found.examples, "accuracy": found.accuracy, "loss": found.loss}
    return values if len(found.confusion) <= 5 else values | {"top5": found.top5}
