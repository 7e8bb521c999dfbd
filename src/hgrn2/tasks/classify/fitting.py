"""Whether a model fits the examples that it is to learn from, and the numbers of it that they decide."""

from typing import Any

from hgrn2.data.classes import Described, Examples
from hgrn2.models.config import SequenceConfig
from hgrn2.settings import refuse
from hgrn2.tasks.classify.config import ClassifyRun


def check_fit(run: ClassifyRun, described: Described, examples: Examples) -> None:
    """Refuse a model for data of other classes, another vocabulary, other channels, or of another form."""
    model, images = run.model, examples.a_offsets is None
    count = len(described.classes)
    refuse(count != model.classes, f"the data {described.task} has {count} classes, the model has {model.classes}")
    if not images and examples.a.ndim == 2:
        fits = isinstance(model, SequenceConfig) and model.channels == examples.a.shape[1]
        refuse(not fits, f"the data {described.task} has {examples.a.shape[1]} numbers per step, the model does not")
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
    images = examples.a_offsets is None
    wrong = not images and not isinstance(model, SequenceConfig)
    refuse(wrong, f"the data {described.task} is sequences, the model reads images")
    fields: dict[str, Any] = {"classes": len(described.classes)}
    if not images and examples.a.ndim == 2:
        return fields | {"vocab_size": 0, "channels": int(examples.a.shape[1])}
    if not images:
        return fields | {"vocab_size": described.vocab_size, "channels": 0, "pair": examples.b is not None}
    fields["channels"] = 1 if grey else int(examples.a.shape[-1])
    if isinstance(model, SequenceConfig):
        return fields | {"vocab_size": 0}
    return fields | {"image_size": int(max(examples.a.shape[1:3]))}
