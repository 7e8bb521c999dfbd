"""Our tokenizers as transformers' fast ones: the same ids for the same text, no begin or end token added."""

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from hgrn2.errors import UserError
from hgrn2.files import read_json

END = "<|endoftext|>"


def fast_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast | None:
    """A tokenizer of `hgrn2.data.tokenizer` for transformers, padding on the left; None for a kind without such a form.

    The end of a document is the end token and pads. A character that a `chars` tokenizer does not know is left out
    here, where ours refuses it.
    """
    content = _content(tokenizer)
    if content is None:
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("writing a tokenizer needs the tokenizers library: pip install 'hgrn2[text]'") from None
    library = Tokenizer.from_str(json.dumps(content))
    end = None if tokenizer.eot is None else library.id_to_token(tokenizer.eot)
    return PreTrainedTokenizerFast(
        tokenizer_object=library, eos_token=end, pad_token=end, padding_side="left", clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _content(tokenizer: Any) -> dict[str, Any] | None:
    if tokenizer.kind == "bytes":
        from hgrn2.data.vocabulary import byte_alphabet

        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        end = {"id": 256, "content": END, "special": True}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return _of_single(dict(byte_alphabet()), level, level, [end | flags])
    if tokenizer.kind == "chars":
        # Each character by itself; joined again without anything between.
        return _of_single({c: n for n, c in enumerate(tokenizer.characters)}, None, {"type": "Fuse"}, [])
    if tokenizer.kind != "tokenizer.json":
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        content = read_json(Path(folder) / "tokenizer.json")
    # What ours switches off: the model never saw added tokens.
    return content | {"truncation": None, "padding": None, "post_processor": None}


def _of_single(
    vocabulary: dict[str, int], before: dict[str, Any] | None, decoder: dict[str, Any], added: list[dict[str, Any]]
) -> dict[str, Any]:
    """A byte-pair vocabulary without a single pair."""
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": before, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip
