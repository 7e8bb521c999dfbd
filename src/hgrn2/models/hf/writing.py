"""A model of ours, with its tokenizer, as a folder for transformers."""

import re
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hgrn2.files import atomic_folder
from hgrn2.models.hf.causal import from_language_model
from hgrn2.models.hf.tokenizer import fast_tokenizer
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import CONFIG, reported
from hgrn2.settings import refuse


def write_hf(
    folder: str | Path, model: LanguageModel, tokenizer: Any | None = None, *, shard_size: str = "5GB"
) -> list[str]:
    """Write config.json, generation_config.json, safetensors and, where there is one, the tokenizer.

    Args:
        folder: must not exist yet; it is whole or absent.
        tokenizer: of `hgrn2.data.tokenizer`. Its end of document becomes the end token, and pads.
        shard_size: largest size of one file.

    Returns:
        A line for what could not be written.
    """
    refuse(re.fullmatch(r"\d+(\.\d+)?[KMGT]?B", shard_size) is None, f"shard size {shard_size!r}: write it as 500MB")
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
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with reported(Path(folder)), atomic_folder(Path(folder)) as temporary:
            made.save_pretrained(temporary, max_shard_size=shard_size)
            if fast is not None:
                fast.save_pretrained(temporary)
            mode = (temporary / CONFIG).stat().st_mode
            for file in temporary.iterdir():  # safetensors gives its files to the owner alone
                file.chmod(mode)
    finally:
        if shown:
            logging.enable_progress_bar()
    return notes
