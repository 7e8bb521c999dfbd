"""A model of ours as a folder for transformers, with its tokenizer or what is done to images before it."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hgrn2.files import atomic_folder, write_json
from hgrn2.models.card import Trained, write_card
from hgrn2.models.config import VisionConfig
from hgrn2.models.hf.causal import from_language_model
from hgrn2.models.hf.image import from_vision_classifier
from hgrn2.models.hf.publishing import settings_of
from hgrn2.models.hf.tokenizer import fast_tokenizer
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import reported
from hgrn2.models.vision import VisionClassifier
from hgrn2.settings import refuse

PREPROCESSOR = "preprocessor_config.json"
BICUBIC = 3  # Pillow's number


def write_hf(
    folder: str | Path, model: LanguageModel, tokenizer: Any | None = None, *, shard_size: str = "5GB",
    trained: Trained | None = None,
) -> list[str]:  # fmt: skip
    """Write config.json, generation_config.json, safetensors and, where there is one, the tokenizer.

    Args:
        folder: must not exist yet; it is whole or absent.
        tokenizer: of `hgrn2.data.tokenizer`. Its end of document becomes the end token, and pads.
        shard_size: largest size of one file.
        trained: how the model came about (`hgrn2.models.card.trained_in`), for its card.

    Returns:
        A line for what could not be written.
    """
    _check_size(shard_size)
    notes, fast = [], None
    if tokenizer is None:
        notes.append("no tokenizer belongs to this model: none was written")
    else:
        refuse(
            tokenizer.vocab_size > model.config.vocab_size,
            f"the tokenizer has {tokenizer.vocab_size} ids, the model knows {model.config.vocab_size}",
        )
        fast = fast_tokenizer(tokenizer)
        if fast is None:
            notes.append(f"a tokenizer of kind {tokenizer.kind} has no tokenizer.json: none was written")
    end = None if tokenizer is None else tokenizer.eot
    made = from_language_model(model, eos_token_id=end, pad_token_id=end)
    made._trained = trained
    _write(Path(folder), made, shard_size, [] if fast is None else [fast.save_pretrained])
    return notes


def write_hf_image(
    folder: str | Path, model: VisionClassifier, names: Sequence[str] | None = None, *, shard_size: str = "5GB",
    trained: Trained | None = None,
) -> list[str]:  # fmt: skip
    """Write config.json, safetensors and preprocessor_config.json; arguments and result as of `write_hf`.

    Args:
        names: of the classes, in their order.
    """
    _check_size(shard_size)
    notes = [] if names else ["the names of the classes are not known here: they are LABEL_0, LABEL_1, …"]
    if model.config.channels == 1:
        notes.append("the model reads grey images: turn colours into grey (Pillow's mode L) before the processor")
    labels = dict(enumerate(names)) if names else None
    named = {"id2label": labels, "label2id": {name: n for n, name in labels.items()}} if labels else {}
    made = from_vision_classifier(model, **named)
    prepare = preprocessing(model.config)
    made._trained = trained
    _write(Path(folder), made, shard_size, [lambda place: write_json(place / PREPROCESSOR, prepare)])
    return notes


def preprocessing(config: VisionConfig) -> dict[str, Any]:
    """What transformers' image processor does to images, so that they reach a model as its training showed them:
    0 to 255 becomes -1 to 1."""
    size, half = config.image_size, [0.5] * config.channels
    return {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": size, "width": size},
        "resample": BICUBIC, "do_convert_rgb": config.channels == 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": half, "image_std": half,
    }  # fmt: skip


def _check_size(shard_size: str) -> None:
    refuse(re.fullmatch(r"\d+(\.\d+)?[KMGT]?B", shard_size) is None, f"shard size {shard_size!r}: write it as 500MB")


def _write(folder: Path, made: Any, shard_size: str, more: list[Callable[[Path], Any]]) -> None:
    """The model, and what else belongs to it, in a folder that is whole or absent."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with reported(folder), atomic_folder(folder) as temporary:
            write_card(temporary, settings_of(made.config), "transformers", trained=made._trained, title=folder.name)
            made.save_pretrained(temporary, max_shard_size=shard_size)
            for save in more:
                save(temporary)
    finally:
        if shown:
            logging.enable_progress_bar()
