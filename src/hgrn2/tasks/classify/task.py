"""Classification as a task of the trainer: batches of sequences, pairs or images, their loss, and the share right."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hgrn2.data.augment import augment
from hgrn2.data.class_batches import ClassBatches, ClassPlan
from hgrn2.data.classes import Described, Examples, open_examples
from hgrn2.models.config import SequenceConfig
from hgrn2.models.modes import reading
from hgrn2.models.sequence import cross_entropy
from hgrn2.progress import Progress, silent
from hgrn2.report.answers import Answer
from hgrn2.settings import refuse
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.classify.loading import Batch, Loader

MEASURE_TOKENS = {"cpu": 1 << 17, "cuda": 1 << 19}
"""Tokens of one forward pass while measuring, by the kind of device; long sequences come in few rows at a time."""
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Measured:
    """What a model does on examples."""

    examples: int
    accuracy: float
    """Share of examples whose class has the largest logit."""
    top5: float
    """Share of examples whose class is among the five largest; 1 where there are no more classes."""
    loss: float
    """Mean nats an example, without label smoothing."""
    confusion: np.ndarray
    """int64 [classes,classes]: examples of the class of the row that were taken for the class of the column."""


class ClassifyTask:
    """Batches, loss and measurements; see `hgrn2.train.task.Task`."""

    def __init__(
        self, run: ClassifyRun, described: Described, splits: dict[str, Examples], device: torch.device
    ) -> None:
        self.run, self.splits, self.device = run, splits, device
        for examples in splits.values():
            check_fit(run, described, examples)
        train, first = splits[run.data.train_split], run.data.curriculum
        self.batches = ClassBatches(train, plan_of(run))
        self.loader = Loader(train, plan_of(run), device)
        tokens = np.minimum(train.lengths(np.arange(len(train))), run.train.sequence_length).mean()
        self.tokens_per_step = round(float(tokens) * run.train.batch_size)
        self.data_identity = _identity(run, train)
        self.easy: tuple[ClassBatches, Loader] | None = None
        if first.steps:
            plan, easy = plan_of(run, batch_size=first.batch_size), splits[first.split]
            self.easy = ClassBatches(easy, plan), Loader(easy, plan, device)

    def epochs(self, steps: int) -> float:
        """How often every training example was seen; the easier ones of the beginning do not count."""
        return max(0, steps - self.run.data.curriculum.steps) / self.batches.batches_per_epoch

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Model inputs, labels [B] (or mixed ones [B,classes]) and the mask of padding; of images after changes."""
        indices, loader = self._examples(step)
        found = loader.batch(np.split(indices, parts)[part])
        # Its own random numbers for every step and part: a resumed run draws the same.
        seed = int(np.random.SeedSequence((self.run.train.seed, step, part)).generate_state(1, np.uint64)[0] >> 1)
        if found.keep is not None:
            return found.inputs, found.labels, self._thinned(found.keep, seed)
        random = torch.Generator().manual_seed(seed)
        config = self.run.data.augment
        images, labels = augment(found.inputs, found.labels, config, self.run.model.classes, random)
        return pixels(self.run, images), labels, None

    def _examples(self, step: int) -> tuple[np.ndarray, Loader]:
        """Which examples a step takes, and what loads them."""
        first = self.run.data.curriculum.steps
        if self.easy is not None and step < first:
            batches, loader = self.easy
            return (self._opened(step) if self.run.data.curriculum.rising else batches.indices(step)), loader
        return self.batches.indices(step - first), self.loader

    def _thinned(self, keep: Tensor, seed: int) -> Tensor:
        """The mask without the tokens that this step leaves out."""
        share = self.run.data.drop_tokens
        if not share:
            return keep
        random = torch.Generator(keep.device).manual_seed(seed)
        return keep & (torch.rand(keep.shape, generator=random, device=keep.device) >= share)

    def _opened(self, step: int) -> np.ndarray:
        """A step's examples from the part of the easier ones that is open by then, drawn with replacement."""
        assert self.easy is not None
        plan, count = self.easy[0].plan, len(self.easy[0].examples)
        opened = max(plan.batch_size, count * (step + 1) // self.run.data.curriculum.steps)
        random = np.random.default_rng(np.random.SeedSequence((plan.seed, step)))
        return random.integers(min(opened, count), size=plan.batch_size)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """Mean nats an example."""
        inputs, labels, keep = batch
        return cross_entropy(logits(model, self.run, inputs, keep), labels, self.run.data.augment.label_smoothing)

    def evaluate(self, model: nn.Module) -> dict[str, float | None]:
        """Nats and share right on the validation split, of it the examples that fit into `eval_tokens`."""
        examples = self.splits[self.run.data.valid_split]
        found = measure(model, examples, self.run, self.device, tokens=self.run.train.eval_tokens)
        return {"loss": found.loss, "bits_per_byte": None, "accuracy": found.accuracy}

    def save_assets(self, folder: Path) -> None:
        """Nothing: a saved classifier is its weights and settings; `own.keep` writes the rest of an own run."""


def _identity(run: ClassifyRun, train: Examples) -> str:
    """What the examples that are trained on are known again by: their folder's checksums, or those of own tables."""
    if run.data.folder:
        return open_examples(run.data.folder).identity_of(run.data.train_split)
    digest = hashlib.sha256()
    for array in (train.a, train.a_offsets, train.labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def measure(
    model: nn.Module, examples: Examples, run: ClassifyRun, device: torch.device, *, tokens: int | None = None,
    progress: Progress = silent,
) -> Measured:  # fmt: skip
    """Accuracy and loss on all examples, or on evenly chosen ones of about so many `tokens` together."""
    chosen, lengths = np.arange(len(examples)), examples.lengths(np.arange(len(examples)))
    if tokens is not None:
        count = int(min(len(examples), max(1, tokens // max(1, lengths.mean()))))
        chosen = np.linspace(0, len(examples) - 1, count).round().astype(np.int64)
    chosen = chosen[np.argsort(lengths[chosen], kind="stable")]  # alike lengths together: little padding
    loader = Loader(examples, plan_of(run), device, limit=0)
    classes, done, nats, five = run.model.classes, 0, 0.0, 0
    at_once = MEASURE_TOKENS.get(device.type, MEASURE_TOKENS["cpu"])
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    with reading(model):
        while done < len(chosen):
            longest = min(int(lengths[chosen[min(len(chosen) - 1, done + 255)]]), run.train.sequence_length)
            rows = chosen[done : done + max(1, min(256, at_once // max(1, longest)))]
            found = _inputs(run, loader.batch(rows))
            out = logits(model, run, found.inputs, found.keep).float().cpu()
            labels = found.labels.cpu()
            nats += float(nn.functional.cross_entropy(out, labels, reduction="sum"))
            five += int((out.topk(min(5, classes), -1).indices == labels[:, None]).sum())
            confusion.view(-1).index_add_(0, labels * classes + out.argmax(-1), torch.ones_like(labels))
            done += len(rows)
            progress("measuring", done, len(chosen))
    right = int(confusion.diagonal().sum())
    return Measured(done, right / done, five / done, nats / done, confusion.numpy())


def ask(
    model: nn.Module, examples: Examples, run: ClassifyRun, classes: tuple[str, ...], device: torch.device,
    count: int = 24,
) -> list[Answer]:  # fmt: skip
    """What a model says of some pictures, evenly chosen; nothing where the examples are sequences."""
    if examples.a_offsets is not None:
        return []
    rows = np.unique(np.linspace(0, len(examples) - 1, count).round().astype(np.int64))
    with reading(model):
        found = _inputs(run, Loader(examples, plan_of(run), device, limit=0).batch(rows))
        chances, guesses = logits(model, run, found.inputs, None).float().softmax(-1).max(-1)
    labels = examples.labels[rows]
    return [
        Answer(picture=np.asarray(examples.a[row]), truth=classes[label], guess=classes[guess], chance=chance)
        for row, label, guess, chance in zip(rows, labels, guesses.tolist(), chances.tolist(), strict=True)
    ]


def logits(model: nn.Module, run: ClassifyRun, inputs: Tensor, keep: Tensor | None) -> Tensor:
    """[B,classes] of prepared inputs."""
    config = run.model
    if not isinstance(config, SequenceConfig):
        return model(inputs)
    if inputs.is_floating_point() and keep is None:  # a picture as a sequence of pixels: [B,C,H,W] -> [B,H*W,C]
        height, width = inputs.shape[-2:]
        return model(inputs.flatten(2).transpose(1, 2), shape=(height, width) if config.is_2d else None)
    return model(inputs, keep)


def pixels(run: ClassifyRun, images: Tensor) -> Tensor:
    """Images [B,C,H,W] from 0 to 1 as a model reads them: grey where asked for, from -1 to 1."""
    if run.data.grey and images.shape[1] == 3:
        images = (images * images.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    return images * 2 - 1


def _inputs(run: ClassifyRun, found: Batch) -> Batch:
    if found.keep is not None:
        return found
    return found._replace(inputs=pixels(run, found.inputs.permute(0, 3, 1, 2).float() / 255))


def plan_of(run: ClassifyRun, *, batch_size: int = 0) -> ClassPlan:
    """How examples become batches."""
    return ClassPlan(
        batch_size=batch_size or run.train.batch_size, max_length=run.train.sequence_length, too_long=run.data.too_long,
        multiple=run.data.multiple, pool=run.data.pool, seed=run.train.seed,
    )  # fmt: skip


def check_fit(run: ClassifyRun, described: Described, examples: Examples) -> None:
    """Refuse a model for data of other classes, another vocabulary, other channels, or of another form."""
    model, images = run.model, examples.a_offsets is None
    count = len(described.classes)
    refuse(count != model.classes, f"the data {described.task} has {count} classes, the model has {model.classes}")
    if not images and examples.a.ndim == 2:
        fits = isinstance(model, SequenceConfig) and model.channels == examples.a.shape[1]
        refuse(not fits, f"the data {described.task} has {examples.a.shape[1]} numbers a step, the model does not")
        return
    if not images:
        fits = isinstance(model, SequenceConfig) and model.vocab_size > 0
        refuse(not fits, f"the data {described.task} is sequences of token ids, the model reads something else")
        assert isinstance(model, SequenceConfig)
        few = described.vocab_size > model.vocab_size
        refuse(few, f"the data has token ids up to {described.vocab_size - 1}, the model only {model.vocab_size}")
        pair = examples.b is not None
        refuse(pair != model.pair, f"the data is {'pairs' if pair else 'single sequences'}, the model reads the other")
        return
    refuse(model.channels < 1, f"the data {described.task} is images, the model reads token ids")
    found = 1 if run.data.grey else examples.a.shape[-1]
    refuse(found != model.channels, f"the images have {found} channels, the model reads {model.channels}")
    if not isinstance(model, SequenceConfig):
        sides, patch = examples.a.shape[1:3], model.patch
        bad = any(side % patch for side in sides)
        refuse(bad, f"images of {sides[0]} x {sides[1]} do not divide into patches of {patch}")


def fitted(model: Any, described: Described, examples: Examples, *, grey: bool = False) -> dict[str, Any]:
    """The fields of a model's settings that its data decides."""
    fields: dict[str, Any] = {"classes": len(described.classes)}
    if examples.a_offsets is not None and examples.a.ndim == 2:
        return fields | {"vocab_size": 0, "channels": int(examples.a.shape[1])}
    if examples.a_offsets is not None:
        return fields | {"vocab_size": described.vocab_size, "channels": 0, "pair": examples.b is not None}
    fields["channels"] = 1 if grey else int(examples.a.shape[-1])
    if isinstance(model, SequenceConfig):
        return fields | {"vocab_size": 0}
    return fields | {"image_size": int(max(examples.a.shape[1:3]))}
