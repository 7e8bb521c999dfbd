"""A saved classifier and what it does: measured on a folder of examples, or asked about single images and texts."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hgrn2.data.classes import examples_of, open_examples
from hgrn2.data.labelled import Columns, Labelled, numbers_of, read_labelled
from hgrn2.data.tables import is_table
from hgrn2.data.tokenizer import Tokenizer, load_tokenizer
from hgrn2.errors import UserError
from hgrn2.files import read_json
from hgrn2.models.config import SequenceConfig
from hgrn2.models.modes import reading
from hgrn2.models.saved import (
    CHECKPOINTS,
    CLASSIFIERS,
    CONFIG,
    Classifier,
    Found,
    Warn,
    checkpoints,
    find_model,
    load_classifier,
    usable_device,
)
from hgrn2.progress import Progress, silent
from hgrn2.settings import from_dict, refuse
from hgrn2.tasks.classify.config import ClassifyData, ClassifyRun, OwnColumns
from hgrn2.tasks.classify.fitting import check_fit
from hgrn2.tasks.classify.loading import Loader
from hgrn2.tasks.classify.own import EXAMPLES, encode_texts, standardised
from hgrn2.tasks.classify.task import Measured, logits, measure, pixels, plan_of
from hgrn2.train.config import TrainConfig

ANY_LENGTH = 1 << 24
"""Tokens that a model without a table of positions may be given."""
BATCH = 64
"""Images of one size that are read side by side."""


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier ready to use, where it came from, and the run that says how its inputs are made."""

    model: Classifier
    found: Found
    run: ClassifyRun
    device: torch.device

    @property
    def name(self) -> str:
        """For messages: the folder, and the step of a run."""
        return str(self.found.folder) if self.found.run is None else f"{self.found.run} (step {self.found.step})"

    @property
    def own(self) -> OwnColumns:
        """How its examples stood in tables of one's own; of kind none where they did not."""
        return self.run.data.own

    @property
    def reads_text(self) -> bool:
        """Whether its inputs are a text's tokens."""
        config = self.run.model
        as_bytes = isinstance(config, SequenceConfig) and config.vocab_size == 257 and not config.pair
        return self.own.kind == "text" or (self.own.kind == "none" and as_bytes)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of the run's own texts."""
        if self.found.tokenizer is None:
            raise UserError(f"{self.name} has no tokenizer/ folder, so text cannot be read")
        return load_tokenizer(self.found.tokenizer)

    def examples(self) -> str:
        """The folder of the run's examples; empty where it is not known."""
        if self.own.kind != "none" and self.found.run is not None:
            return str(self.found.run / EXAMPLES)
        return self.run.data.folder

    def classes(self, data: Path | None = None) -> tuple[str, ...]:
        """Names of the classes: those of `data`, else as the run or its own data knows them, else their numbers."""
        count = self.run.model.classes
        names = self._remembered() if data is None or is_table(data) else _names_of(data)
        if names is None:
            return tuple(map(str, range(count)))
        refuse(len(names) != count, f"{data or self.name} names {len(names)} classes, the model has {count}")
        return names

    def _remembered(self) -> tuple[str, ...] | None:
        path = None if self.found.run is None else self.found.run / "summary.json"
        summary = read_json(path) if path is not None and path.is_file() else {}
        names = summary.get("classes") if isinstance(summary, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
        known = self.examples() and (Path(self.examples()) / "manifest.json").is_file()
        return _names_of(Path(self.examples())) if known else None

    def precision(self) -> AbstractContextManager[Any]:
        """Around forward passes: as it was trained, on a GPU; float32 elsewhere."""
        wanted = self.run.train.precision == "bfloat16" and self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)


@dataclass(frozen=True)
class Answer:
    """What a model takes an input for."""

    classes: tuple[int, ...]
    """Class numbers, the likeliest first."""
    chances: tuple[float, ...]


def load_run(path: Path, device: str = "auto", warn: Warn | None = None) -> LoadedClassifier:
    """The classifier of a run, checkpoint or model folder. Of one that is not part of a run it is not known how its
    inputs were made: images are then read as they are, and no sequence is cut.

    Raises:
        UserError: as of `load_classifier`.
    """
    place = usable_device(device)
    found = find_model(path, warn)
    model = load_classifier(found.folder, place)
    config = model.config
    settings = None if found.run is None else found.run / CONFIG
    if settings is not None and settings.is_file():
        run = from_dict(ClassifyRun, read_json(settings), str(settings))
        return LoadedClassifier(model, found, replace(run, model=config), place)
    learned = isinstance(config, SequenceConfig) and config.positions == "learned"
    length = config.max_length if learned and isinstance(config, SequenceConfig) else ANY_LENGTH
    train, data = TrainConfig(sequence_length=length), ClassifyData(too_long="stop")
    return LoadedClassifier(model, found, ClassifyRun(task=path.name, model=config, data=data, train=train), place)


def measure_on(
    loaded: LoadedClassifier, data: Path | None, split: str | None, progress: Progress = silent
) -> tuple[str, Measured]:
    """The name of the split and what the model does on it; without `data` on that of its run, without `split` on its
    test split.

    Raises:
        UserError: no such data, or data of other classes, vocabulary, channels or form than the model's; a sequence
            that is longer than its positions, unless the run cuts those.
    """
    run = loaded.run
    if data is not None and is_table(data):
        return data.name, _measure_table(loaded, data, progress)
    known = loaded.examples() if data is None else str(data)
    refuse(not known, f"{loaded.name} does not say what it was trained on: give --data")
    gone = data is None and not (Path(known) / "manifest.json").is_file()
    refuse(gone, f"{known}, where the run had its examples, is not there: give --data")
    opened, name = open_examples(known), split or run.data.test_split
    examples = opened.split(name)
    check_fit(run, opened.described, examples)
    with loaded.precision():
        return name, measure(loaded.model, examples, run, loaded.device, progress=progress)


def _measure_table(loaded: LoadedClassifier, path: Path, progress: Progress) -> Measured:
    """What a model does on the examples of a table with the columns of its run."""
    found = read_examples(loaded, [path])
    classes = loaded.classes()
    labels = numbers_of(found, classes)
    item = "float32" if loaded.own.kind == "numbers" else "int32"
    examples = examples_of(_inputs_of(loaded, found.inputs), labels, item)
    with loaded.precision():
        return measure(loaded.model, examples, loaded.run, loaded.device, progress=progress)


def read_examples(loaded: LoadedClassifier, paths: Sequence[Path], *, labels: bool = True) -> Labelled:
    """Rows of tables with the columns that the run was trained on, with or without their labels.

    Raises:
        UserError: a model of no tables, and as `hgrn2.data.labelled.read_labelled`.
    """
    own = loaded.own
    refuse(own.kind == "none", f"{loaded.name} was not trained on tables (hgrn2 train classify)")
    assert own.kind != "none"
    columns = Columns(inputs=own.inputs, label=own.label, kind=own.kind)
    return read_labelled(paths, columns, header=own.header, labels=labels)


def ask_examples(
    loaded: LoadedClassifier, inputs: Sequence[Any], count: int = 5, progress: Progress = silent
) -> list[Answer]:
    """The likeliest classes of texts, or of sequences of numbers [T,C], as `read_examples` gives them."""
    found: dict[int, Answer] = {}
    made = _inputs_of(loaded, inputs)
    order = np.argsort([len(one) for one in made], kind="stable")  # alike lengths side by side: little padding
    plan = plan_of(loaded.run)
    item = "float32" if loaded.own.kind == "numbers" else "int32"
    examples = examples_of(made, [0] * len(made), item)
    loader = Loader(examples, plan, loaded.device, limit=0)
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        batch = loader.batch(rows)
        answers = _answers(loaded, batch.inputs, batch.padding_mask, count)
        found |= dict(zip(rows.tolist(), answers, strict=True))
        progress("classifying", len(found), len(order))
    return [found[place] for place in range(len(made))]


def _inputs_of(loaded: LoadedClassifier, inputs: Sequence[Any]) -> list[np.ndarray]:
    """Ids [T] or standardised numbers [T,C], no longer than the model was trained on."""
    own, longest = loaded.own, loaded.run.train.sequence_length
    if own.kind == "numbers":
        channels = len(own.mean)
        wrong = next((one.shape[1] for one in inputs if one.shape[1] != channels), None)
        refuse(wrong is not None, f"a step has {wrong} numbers, the model reads {channels}")
        return standardised(inputs, own, longest)
    ids, _ = encode_texts(loaded.tokenizer, inputs, longest)
    refuse(any(len(one) == 0 for one in ids), "the tokenizer makes no token of a text")
    return ids


def image_side(loaded: LoadedClassifier) -> int:
    """Pixels along the sides of the images that the model was trained on."""
    config = loaded.run.model
    if not isinstance(config, SequenceConfig):
        return config.image_size
    side = isqrt(loaded.run.train.sequence_length)
    refuse(config.channels < 1, f"{loaded.name} reads sequences of token ids, not images")
    unknown = side * side != loaded.run.train.sequence_length or loaded.run.train.sequence_length == ANY_LENGTH
    refuse(unknown, f"{loaded.name} does not say how large its images were: give --size")
    return side


def ask_images(loaded: LoadedClassifier, images: Sequence[np.ndarray], count: int = 5) -> list[Answer]:
    """The likeliest classes of images uint8 [H,W,C]; those of one size are read side by side."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.shape, []).append(place)
    found: dict[int, Answer] = {}
    for places in groups.values():
        for begin in range(0, len(places), BATCH):
            some = places[begin : begin + BATCH]
            stacked = torch.from_numpy(np.stack([images[place] for place in some])).to(loaded.device)
            inputs = pixels(loaded.run, stacked.permute(0, 3, 1, 2).float() / 255)
            found |= dict(zip(some, _answers(loaded, inputs, None, count), strict=True))
    return [found[place] for place in range(len(images))]


def ask_text(loaded: LoadedClassifier, text: str, count: int = 5) -> Answer:
    """The likeliest classes of a text, in the run's tokens or as bytes; what is beyond its longest is not read.

    Raises:
        UserError: a model that reads something else, an empty text, one longer than its positions.
    """
    from hgrn2.data.lra.texts import bytes_of

    refuse(not loaded.reads_text, f"{loaded.name} does not read texts")
    refuse(not text.strip() if loaded.own.kind == "text" else not text, "the text is empty")
    if loaded.own.kind == "text":
        return ask_examples(loaded, [text], count)[0]
    longest, whole = loaded.run.train.sequence_length, len(text.encode("utf-8", "surrogatepass"))
    long = whole > longest and loaded.run.data.too_long == "stop"
    refuse(long, f"the text has {whole:,} bytes, the model has {longest:,} positions")
    ids = torch.from_numpy(bytes_of(text, longest).astype(np.int64))[None].to(loaded.device)
    return _answers(loaded, ids, torch.ones_like(ids, dtype=torch.bool), count)[0]


def _answers(loaded: LoadedClassifier, inputs: Tensor, padding_mask: Tensor | None, count: int) -> list[Answer]:
    with reading(loaded.model), loaded.precision():
        chances = logits(loaded.model, loaded.run, inputs, padding_mask).float().softmax(-1).cpu()
    best, places = chances.topk(min(count, chances.shape[-1]), -1)
    return [Answer(tuple(n), tuple(p)) for n, p in zip(places.tolist(), best.tolist(), strict=True)]


def _names_of(folder: Path) -> tuple[str, ...]:
    return open_examples(folder).described.classes


def is_classifier(path: Path) -> bool:
    """Whether a run, checkpoint or model folder says that it holds a classifier; False also where it holds nothing.

    Only the settings are looked at: whether the files are whole is found out when they are loaded.
    """
    newest = checkpoints(path)[-1:] if (path / CHECKPOINTS).is_dir() else []
    settings = (newest[0].folder if newest else path) / CONFIG
    values = read_json(settings) if settings.is_file() else None
    return isinstance(values, dict) and values.get("kind") in CLASSIFIERS
