"""What is given to a model and does not fit: one clear line, on the CPU also for ids that nothing stands for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.generate.generator import Generator
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.key_values import KeyValues
from hgrn2.layers.state import ModelState
from hgrn2.models.config import ModelConfig, SequenceConfig, VisionConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import usable_device
from hgrn2.models.sequence import SequenceClassifier
from hgrn2.models.vision import VisionClassifier
from hgrn2.perplexity import windows

MIXER = {"width": 16, "layers": 1, "glu_width": 16}
MODEL = LanguageModel(ModelConfig(vocab_size=11, mixer=MixerConfig(head_size=8), **MIXER))
BOTH = MixerConfig(head_size=8, direction="bidirectional")
SEQUENCES = SequenceClassifier(SequenceConfig(vocab_size=11, classes=3, mixer=BOTH, **MIXER))
IMAGES = VisionClassifier(VisionConfig(classes=3, image_size=8, patch=4, mixer=BOTH, **MIXER))
T = torch.zeros(1, 5, dtype=torch.long)
IMAGE, LABEL = torch.zeros(1, 3, 8, 8), torch.tensor([0])


class Bytes:
    """A tokenizer of eleven ids."""

    vocab_size, eot = 11, None


GENERATOR = Generator(MODEL, Bytes())
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "id too large": (lambda: MODEL(T + 11), "token id 11 is outside the vocabulary of 11"),
    "id below zero": (lambda: MODEL.loss(T - 1, T), "token id -1 is outside the vocabulary of 11"),
    "tokens of numpy": (lambda: MODEL(T.numpy()), "tokens must be a tensor, not numpy.ndarray"),
    "tokens in a list": (lambda: MODEL([[1, 2]]), "tokens must be a tensor, not builtins.list"),
    "tokens with a point": (
        lambda: MODEL(T.float()),
        "tokens must be integers [B,T], or embeddings [B,T,16]; got [1, 5]",
    ),
    "embeddings of other width": (lambda: MODEL(torch.zeros(1, 5, 8)), "or embeddings [B,T,16]; got [1, 5, 8] float32"),
    "tokens of one axis": (lambda: MODEL(T[0]), "tokens must be [B,T] int64 or int32; got [5] int64"),
    "tokens of eight bits": (lambda: MODEL(T.byte()), "tokens must be [B,T] int64 or int32; got [1, 5] uint8"),
    "an unknown loss": (lambda: MODEL.loss(T, T, method="x"), "loss method 'x' is unknown; choose one of auto, full"),
    "targets of other length": (
        lambda: MODEL.loss(T, T[:, 1:]),
        "targets must be [1, 5] int64, as the tokens; got [1, 4]",
    ),
    "targets of 32 bits": (lambda: MODEL.loss(T, T.int()), "got [1, 5] int32"),
    "targets outside": (lambda: MODEL.loss(T, T + 11), "target 11 is outside the vocabulary of 11"),
    "a state of whole numbers": (
        lambda: MODEL.zeros(1, torch.int64),
        "must be a floating-point torch.dtype, not torch.int64",
    ),
    "a state of a name": (lambda: MODEL.zeros(1, "float32"), "must be a floating-point torch.dtype, not 'float32'"),
    "states for half a text": (lambda: MODEL.zeros(0.5), "batch is 0.5; it must be a whole number"),
    "states for less than none": (lambda: MODEL.zeros(-1), "batch is -1; it must be a whole number of at least 0"),
    "no layer's state": (lambda: MODEL(T, ModelState(())), "the state is of 0 layers, the model has 1"),
    "a state of another kind": (
        lambda: MODEL(T, ModelState((KeyValues(torch.zeros(1, 0, 2, 2, 8), (0,)),))),
        "the state of layer 0 is not one of hgru2: it belongs to another model",
    ),
    "another thing as state": (lambda: MODEL(T, {}), "a state is a ModelState, as zeros() makes it, not dict"),
    "features of other width": (
        lambda: MODEL.backbone(torch.zeros(1, 5, 8)),
        "x must be [B,T,16] floating-point; got [1, 5, 8]",
    ),
    "unknown recomputation": (
        lambda: MODEL.backbone.set_recompute("all"),
        "recompute 'all' is unknown; choose one of none",
    ),
    "a mask in a list": (lambda: MODEL(T, padding_mask=[True] * 5), "padding_mask must be a tensor, not builtins.list"),
    "an id of no class": (lambda: SEQUENCES(T + 20), "token id 20 is outside the vocabulary of 11"),
    "inputs of numpy": (lambda: SEQUENCES(T.numpy()), "inputs must be a tensor, not numpy.ndarray"),
    "a label of no class": (
        lambda: SEQUENCES.loss(T, LABEL + 3),
        "label 3 is outside the classes, of which there are 3",
    ),
    "labels of other length": (
        lambda: IMAGES.loss(IMAGE, T[0]),
        "labels must be [1] int64, or probabilities [1, 3]; got [5]",
    ),
    "smoothing above one": (
        lambda: IMAGES.loss(IMAGE, LABEL, label_smoothing=2),
        "label_smoothing is 2; it must be in [0, 1]",
    ),
    "an image of numpy": (lambda: IMAGES(IMAGE.numpy()), "images must be a tensor, not numpy.ndarray"),
    "none of the classes": (lambda: IMAGES.top(IMAGE, 0), "count is 0; it must be a whole number of at least 1"),
    "a prompt of two texts": (
        lambda: GENERATOR.stream(np.zeros((2, 3), dtype=int)),
        "one sequence of token ids, not [2, 3]",
    ),
    "settings in a dict": (lambda: GENERATOR.stream([1], {}), "expected a GenerationConfig, not dict"),
    "another thing as snapshot": (
        lambda: GENERATOR.stream([1], None, MODEL.zeros(1)),
        "expected a Snapshot, not ModelState",
    ),
    "no language model": (lambda: Generator(SEQUENCES, Bytes()), "must be a LanguageModel, not SequenceClassifier"),
    "half a window": (lambda: windows(MODEL, None, window=2.5), "window is 2.5; it must be a whole number"),
    "a device without numbers": (lambda: usable_device("meta"), "device 'meta' cannot be used: it holds no numbers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_refused_in_one_line(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_targets_that_do_not_count_may_be_minus_100() -> None:
    targets = torch.tensor([[1, -100, 2, -100, 10]])
    kept = MODEL.loss(T, targets)
    logits = MODEL(T)[0][targets >= 0]
    torch.testing.assert_close(kept, torch.nn.functional.cross_entropy(logits, targets[targets >= 0]))
    torch.testing.assert_close(MODEL.loss(T, targets, method="chunked"), kept)
