"""Tokenizers as the page in a browser has them: bytes, characters, and byte-level BPE with GPT-2's splitting."""

import json
from typing import Any

from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from hgrn2.data.vocabulary import JsonTokenizer, byte_alphabet
from hgrn2.errors import UserError

VOCABULARY = "vocabulary.json"
SPLITS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
"""What a vocabulary must say of how words are split."""


def described(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(what model.json says, the vocabulary file's content or None where none is needed).

    The file holds `bytes`, the bytes of each id as characters U+0000 to U+00FF, and `merges`, [left, right, joined] ids
    in their order.

    Raises:
        UserError: a tokenizer that the page does not have.
    """
    known: dict[str, Any] = {**tokenizer.identity()}
    if isinstance(tokenizer, ByteTokenizer):
        return known, None
    if isinstance(tokenizer, CharTokenizer):
        return {**known, "characters": tokenizer.characters}, None
    if isinstance(tokenizer, JsonTokenizer):
        content = json.loads(tokenizer.text)
        problem = _problem(content)
        if problem is None:
            return {**known, "kind": "bpe", "vocabulary": VOCABULARY}, _vocabulary(tokenizer, content)
        raise UserError(f"the page in a browser reads byte-level BPE as GPT-2's, and {problem}; hgrn2 serve shows any")
    raise UserError(f"the page in a browser has no tokenizer of kind {tokenizer.kind}; hgrn2 serve shows any")


def _problem(content: dict[str, Any]) -> str | None:
    """Why a tokenizer.json means something else than byte-level BPE with GPT-2's splitting; None where it does not."""
    model, before = content["model"], content.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or any(before.get(key) != value for key, value in SPLITS.items()):
        return "this vocabulary splits text in another way"
    if content.get("normalizer") is not None:
        return "this one changes text before it is split"
    if any(model.get(key) for key in ("byte_fallback", "ignore_merges", "dropout", "continuing_subword_prefix",
                                      "end_of_word_suffix")):  # fmt: skip
        return "this one joins tokens in another way"
    if any(not token["special"] for token in content.get("added_tokens") or ()):
        return "this one has tokens beside its merges"
    if not set(byte_alphabet()) <= set(model["vocab"]):
        return "this one lacks some bytes"
    return None


def _vocabulary(tokenizer: JsonTokenizer, content: dict[str, Any]) -> dict[str, Any]:
    ids: dict[str, int] = content["model"]["vocab"]
    merges = []
    for merge in content["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append([ids[left], ids[right], ids[left + right]])
    texts = [tokenizer.decode_bytes([index]).decode("latin-1") for index in range(tokenizer.vocab_size)]
    return {"bytes": texts, "merges": merges, "of_bytes": [ids[character] for character in _in_order()]}


def _in_order() -> list[str]:
    """The characters that spell the bytes 0 to 255."""
    return [character for character, _ in sorted(byte_alphabet().items(), key=lambda pair: pair[1])]
