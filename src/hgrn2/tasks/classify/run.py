"""Classifiers are trained: a run's settings in, a run folder out; and the settings that fit a run to its data."""

from dataclasses import replace
from pathlib import Path

from hgrn2.data.classes import Described, Examples, open_examples
from hgrn2.settings import refuse
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.classify.fitting import fitted
from hgrn2.tasks.classify.own import Prepared
from hgrn2.tasks.classify.task import ClassifyTask
from hgrn2.train.run import RunResult, train


def train_classifier(
    run: ClassifyRun, folder: Path, *, device: str = "auto", restart: bool = False, quiet: bool = False,
    prepared: Prepared | None = None,
) -> RunResult:  # fmt: skip
    """Train in `folder`, or go on where an interrupted run stopped; arguments as of `hgrn2.train.run.train`.

    `prepared` are one's own examples instead of those of the run's folder of data; they are written into the run
    folder.
    """
    return train(
        run, lambda place: ClassifyTask(run, *_examples(run, prepared), place, prepared), folder,
        device=device, restart=restart, quiet=quiet,
    )  # fmt: skip


def _examples(run: ClassifyRun, prepared: Prepared | None) -> tuple[Described, dict[str, Examples]]:
    return (prepared.described, prepared.splits) if prepared else open_splits(run)


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


def fit_to_own(run: ClassifyRun, prepared: Prepared) -> ClassifyRun:
    """The run with the name, columns, classes and vocabulary of one's own examples, measured on valid where there is no
    other test split."""
    model = replace(run.model, **fitted(run.model, prepared.described, prepared.splits["train"]))
    test = run.data.test_split if run.data.test_split in prepared.splits else "valid"
    data = replace(run.data, folder="", own=prepared.columns, train_split="train", valid_split="valid", test_split=test)
    return replace(run, task=prepared.described.task, model=model, data=data)
