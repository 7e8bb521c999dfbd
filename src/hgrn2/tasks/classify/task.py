"""Classification as a task of the trainer: batches of sequences, pairs or images, their loss, and the accuracy."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hgrn2.data.augment import augment
from hgrn2.data.augment_settings import AugmentConfig
from hgrn2.data.class_batches import ClassBatches, ClassPlan
from hgrn2.data.classes import Described, Examples, open_examples
from hgrn2.models.config import SequenceConfig
from hgrn2.models.modes import reading
from hgrn2.models.saved import Classifier, build_classifier
from hgrn2.models.sequence import cross_entropy
from hgrn2.progress import Progress, silent
from hgrn2.report.answers import Answer
from hgrn2.report.classified import Classified
from hgrn2.report.write import write_report
from hgrn2.tasks.classify import own
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.classify.fitting import check_fit
from hgrn2.tasks.classify.loading import Batch, Loader
from hgrn2.tasks.classify.own import Prepared
from hgrn2.train.same_run import refuse_other_run
from hgrn2.train.task import Outcome, Task

MEASURE_TOKENS = {"cpu": 1 << 17, "cuda": 1 << 19}
"""Tokens of one forward pass while measuring, by the kind of device; long sequences come in few rows at a time."""
GREY = (0.299, 0.587, 0.114)
OF_SEQUENCES: Mapping[str, str] = {
    f"data.{name}": "images have no padding and are never cut" for name in ("too_long", "multiple", "drop_tokens")
}
"""Settings that runs on images do not read."""
OF_IMAGES: Mapping[str, str] = {"data.grey": "sequences have no colour"} | {
    f"data.augment.{one.name}": "only images are changed" for one in fields(AugmentConfig)
    if one.name != "label_smoothing"
}  # fmt: skip
"""Settings that runs on sequences do not read."""


@dataclass(frozen=True)
class Measured:
    """What a model does on examples."""

    examples: int
    accuracy: float
    """Share of examples whose class has the largest logit."""
    top5: float
    """Share of examples whose class is among the five largest; 1 where there are no more classes."""
    loss: float
    """Mean nats/example, without label smoothing."""
    confusion: np.ndarray
    """int64 [classes,classes]: examples of the class of the row that were taken for the class of the column."""


class ClassifyTask(Task):
    """Batches, loss and measurements of classification; `prepared` are one's own examples, for the run folder."""

    assets = (own.EXAMPLES, "tokenizer")

    def __init__(
        self, run: ClassifyRun, described: Described, splits: dict[str, Examples], device: torch.device,
        prepared: Prepared | None = None,
    ) -> None:  # fmt: skip
        self.run, self.splits, self.device = run, splits, device
        self.described, self.prepared = described, prepared
        for examples in splits.values():
            check_fit(run, described, examples)
        train, first = splits[run.data.train_split], run.data.curriculum
        self.unread = OF_SEQUENCES if train.a_offsets is None else OF_IMAGES
        self.batches = ClassBatches(train, plan_of(run))
        self.loader = Loader(train, plan_of(run), device)
        tokens = np.minimum(train.lengths(np.arange(len(train))), run.train.sequence_length).mean()
        self.tokens_per_step = round(float(tokens) * run.train.batch_size)
        self.data_identity = _identity(run, train)
        self.easy: tuple[ClassBatches, Loader] | None = None
        if first.steps:
            plan, easy = plan_of(run, batch_size=first.batch_size), splits[first.split]
            self.easy = ClassBatches(easy, plan), Loader(easy, plan, device)

    def model(self) -> Classifier:
        """A classifier of the kind that its settings are of."""
        return build_classifier(self.run.model).to(self.device)

    def epochs(self, steps: int) -> float:
        """How often every training example was seen; the easier ones of the beginning do not count."""
        return max(0, steps - self.run.data.curriculum.steps) / self.batches.batches_per_epoch

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Model inputs, labels [B] (or mixed ones [B,classes]) and the mask of padding; of images after changes."""
        indices, loader = self._examples(step)
        found = loader.batch(np.split(indices, parts)[part])
        # Its own random numbers for every step and part: a resumed run draws the same.
        seed = int(np.random.SeedSequence((self.run.train.seed, step, part)).generate_state(1, np.uint64)[0] >> 1)
        if found.padding_mask is not None:
            return found.inputs, found.labels, self._thinned(found.padding_mask, seed)
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

    def _thinned(self, padding_mask: Tensor, seed: int) -> Tensor:
        """The mask without the tokens that this step leaves out."""
        share = self.run.data.drop_tokens
        if not share:
            return padding_mask
        random = torch.Generator(padding_mask.device).manual_seed(seed)
        return padding_mask & (torch.rand(padding_mask.shape, generator=random, device=padding_mask.device) >= share)

    def _opened(self, step: int) -> np.ndarray:
        """A step's examples from the part of the easier ones that is open by then, drawn with replacement."""
        assert self.easy is not None
        plan, count = self.easy[0].plan, len(self.easy[0].examples)
        opened = max(plan.batch_size, count * (step + 1) // self.run.data.curriculum.steps)
        random = np.random.default_rng(np.random.SeedSequence((plan.seed, step)))
        return random.integers(min(opened, count), size=plan.batch_size)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """Mean nats/example."""
        inputs, labels, padding_mask = batch
        return cross_entropy(
            logits(model, self.run, inputs, padding_mask), labels, self.run.data.augment.label_smoothing
        )

    def evaluate(self, model: nn.Module) -> dict[str, float | None]:
        """Nats and accuracy on the validation split, of it the examples that fit into `eval_tokens`."""
        examples = self.splits[self.run.data.valid_split]
        found = measure(model, examples, self.run, self.device, tokens=self.run.train.eval_tokens)
        return {"loss": found.loss, "bits_per_byte": None, "accuracy": found.accuracy}

    def finish(self, model: nn.Module, folder: Path) -> Outcome:
        """Accuracy on the held-out splits, its answers on some images, and the confusion matrix."""
        run, classes, last = self.run, self.described.classes, self.run.data.test_split
        with torch.autocast(self.device.type, torch.bfloat16, enabled=run.train.precision == "bfloat16"):
            measured = {
                name: measure(model, self.splits[name], run, self.device)
                for name in dict.fromkeys((run.data.valid_split, last))
            }
            seen = ask(model, self.splits[last], run, classes, self.device)
        baseline = self._baseline()
        shown = Classified(
            split=last, classes=classes, confusion=measured[last].confusion, baseline=baseline["accuracy"]
        )
        return Outcome(
            held_out={name: _values(one) for name, one in measured.items()},
            facts={
                "task": run.task, "origin": self.described.origin, "classes": list(classes), "baseline": baseline,
            },
            report=partial(write_report, samples=[], gates=None, seen=seen, classified=shown),
        )  # fmt: skip

    def _baseline(self) -> dict[str, Any]:
        """What naming the commonest class of the training examples every time comes to on the last split."""
        data = self.run.data
        commonest = int(np.bincount(self.splits[data.train_split].labels).argmax())
        share = float((np.asarray(self.splits[data.test_split].labels) == commonest).mean())
        return {"class": self.described.classes[commonest], "accuracy": share}

    def refuse_other(self, folder: Path, saved: Any) -> None:
        """Other settings, or other examples of one's own."""
        if self.prepared:
            own.check(folder, self.prepared)
        refuse_other_run(folder, self.run, saved)

    def save_assets(self, folder: Path) -> None:
        """One's own examples and their tokenizer; other runs know where theirs lie."""
        if self.prepared:
            own.keep(folder, self.prepared)


def _values(found: Measured) -> dict[str, Any]:
    values = {"examples": found.examples, "accuracy": found.accuracy, "loss": found.loss}
    return values if len(found.confusion) <= 5 else values | {"top5": found.top5}


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
            out = logits(model, run, found.inputs, found.padding_mask).float().cpu()
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
    """What a model says of some images, evenly chosen; nothing where the examples are sequences."""
    if examples.a_offsets is not None:
        return []
    rows = np.unique(np.linspace(0, len(examples) - 1, count).round().astype(np.int64))
    with reading(model):
        found = _inputs(run, Loader(examples, plan_of(run), device, limit=0).batch(rows))
        chances, guesses = logits(model, run, found.inputs, None).float().softmax(-1).max(-1)
    labels = examples.labels[rows]
    return [
        Answer(image=np.asarray(examples.a[row]), label=classes[label], guess=classes[guess], chance=chance)
        for row, label, guess, chance in zip(rows, labels, guesses.tolist(), chances.tolist(), strict=True)
    ]


def logits(model: nn.Module, run: ClassifyRun, inputs: Tensor, padding_mask: Tensor | None) -> Tensor:
    """[B,classes] of prepared inputs."""
    config = run.model
    if not isinstance(config, SequenceConfig):
        return model(inputs)
    if inputs.is_floating_point() and padding_mask is None:  # an image as a sequence of pixels: [B,C,H,W] -> [B,H*W,C]
        height, width = inputs.shape[-2:]
        return model(inputs.flatten(2).transpose(1, 2), shape=(height, width) if config.is_2d else None)
    return model(inputs, padding_mask)


def pixels(run: ClassifyRun, images: Tensor) -> Tensor:
    """Images [B,C,H,W] from 0 to 1 as a model reads them: grey where asked for, from -1 to 1."""
    if run.data.grey and images.shape[1] == 3:
        images = (images * images.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    return images * 2 - 1


def _inputs(run: ClassifyRun, found: Batch) -> Batch:
    if found.padding_mask is not None:
        return found
    return found._replace(inputs=pixels(run, found.inputs.permute(0, 3, 1, 2).float() / 255))


def plan_of(run: ClassifyRun, *, batch_size: int = 0) -> ClassPlan:
    """How examples become batches."""
    return ClassPlan(
        batch_size=batch_size or run.train.batch_size, max_length=run.train.sequence_length, too_long=run.data.too_long,
        multiple=run.data.multiple, pool=run.data.pool, seed=run.train.seed,
    )  # fmt: skip
