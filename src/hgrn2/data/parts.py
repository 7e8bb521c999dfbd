"""A text in parts with a `tokenizer.json`: what is done at the beginning of a text alone, and where a text may be cut.

Vocabularies of SentencePiece's kind write a space before every text (`Prepend`, `Metaspace`), some byte-level ones do
too (`add_prefix_space`), and some drop spaces there (`Strip`). A part that goes on after another must be encoded
without all of this. `Cutter` looks for places where parts may be cut so that their ids are those of the whole.
"""

import copy
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

# Where a long text may be cut, likely places first; each is tried before it is taken.
CANDIDATES = tuple(map(re.compile, (r"(?<=\S)\n(?=\S)", r"(?<=\S)(?=[ ]\S)", r"\n+", r"(?s)(?=.)")))
WINDOW = 1 << 16  # characters before a limit in which a place is looked for
TRIES = 64  # of each kind of candidate
CONTEXT = 1024  # characters on both sides of a place over which encoding in one and in two parts is compared

SPLITS_AT_SPACES = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer")


def steps(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder, which may be one, a sequence of them, or none."""
    if isinstance(value, dict):
        for part in value.get(key) or ():
            yield from steps(part, key)
        yield value


def adds_space(content: dict[str, Any]) -> bool:
    """Whether the tokenizer writes a space before a text."""
    return any(
        (step["type"] == "Prepend" and step.get("prepend") in ("▁", " ")) or _prefixes(step)
        for step in (*_normalisers(content), *_pre_tokenizers(content))
    )


def without_beginning(content: dict[str, Any]) -> dict[str, Any] | None:
    """The same tokenizer without what it does at the beginning of a text; None where it does nothing there."""
    changed = copy.deepcopy({key: content.get(key) for key in ("normalizer", "pre_tokenizer")})
    for step in _normalisers(changed):
        if step["type"] == "Strip":
            step["strip_left"] = False
        if step.get("normalizers"):
            step["normalizers"] = [part for part in step["normalizers"] if not _at_start_only(part)]
    if changed["normalizer"] is not None and _at_start_only(changed["normalizer"]):
        changed["normalizer"] = None
    for step in _pre_tokenizers(changed):
        if step["type"] == "Metaspace" and _prefixes(step):
            step.pop("add_prefix_space", None)
            step["prepend_scheme"] = "never"
        elif _prefixes(step):
            step["add_prefix_space"] = False
    return None if all(content.get(key) == value for key, value in changed.items()) else content | changed


def fresh_start(content: dict[str, Any]) -> re.Pattern[str] | None:
    """Where in a text the vocabulary begins anew: from there on it makes no difference what stood before.

    An added token cuts a text in two that are each normalised and split by themselves. Where words are split at spaces
    before each gets its own space, the first space is such a place.
    """
    added = [token["content"] for token in content.get("added_tokens") or () if not token.get("special")]
    places = [re.escape(token) for token in sorted(added, key=len, reverse=True) if token]
    types = [step["type"] for step in _pre_tokenizers(content) if step["type"] in SPLITS_AT_SPACES or _prefixes(step)]
    if len(types) > 1 and types[0] in SPLITS_AT_SPACES:
        places.append(r"\s")
    return re.compile("|".join(places)) if places else None


def _normalisers(content: dict[str, Any]) -> list[dict[str, Any]]:
    return list(steps(content.get("normalizer"), "normalizers"))


def _pre_tokenizers(content: dict[str, Any]) -> list[dict[str, Any]]:
    return list(steps(content.get("pre_tokenizer"), "pretokenizers"))


def _at_start_only(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern")
    regex = pattern.get("Regex", "") if isinstance(pattern, dict) else ""
    return step["type"] == "Prepend" or (step["type"] == "Replace" and regex.startswith(("^", r"\A")))


def _prefixes(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer writes a space before what it is given."""
    if step["type"] == "Metaspace" and "prepend_scheme" in step:
        return step["prepend_scheme"] != "never"
    return step["type"] in ("Metaspace", "ByteLevel") and bool(step.get("add_prefix_space", True))


class Cutter:
    """Finds places at which the parts of a text, encoded by themselves, have the ids of the whole.

    A place is taken where the model cannot see over it, as `apart` tells of the texts on both sides. Besides, the text
    around it must come out the same in one part and in two: normalisers and splitting look ahead.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], apart: Callable[[str, str], bool]) -> None:
        """`encode` encodes texts that continue others."""
        self._encode, self._apart = encode, apart

    def cut(self, text: str, limit: int, before: int = 0) -> int | None:
        """As `Tokenizer.cut`, within the last `WINDOW` characters before the limit."""
        begin = max(limit - WINDOW, before)
        for pattern in CANDIDATES:
            found = (match.end() for match in pattern.finditer(text, begin, limit + 1))
            places = [place for place in found if begin < place <= limit and place < len(text)]
            for place in reversed(places[-TRIES:]):
                left, right = text[max(0, place - CONTEXT) : place], text[place : place + CONTEXT]
                # White space alone may be dropped at the beginning of a text, also when more comes.
                if not text[:place].isspace() and self._same(left, right):
                    return place
        return None

    def _same(self, left: str, right: str) -> bool:
        whole, one, other = self._encode([left + right, left, right])
        return whole == one + other and self._apart(left, right)


class Seams:
    """Whether the model of a `tokenizer.json` cannot see over a place: a border of the pre-tokenizer's words, or two
    characters that stand side by side in no token, so that neither a merge nor a piece can hold both."""

    def __init__(self, library: Any) -> None:
        """`library` is the `tokenizers.Tokenizer` for text that continues."""
        self._library = library

    def __call__(self, left: str, right: str) -> bool:
        plain = [self._normalised(part) for part in (left, right, left + right)]
        return plain[0] + plain[1] == plain[2] and (self._splits(plain[2], len(plain[0])) or self._apart(*plain[:2]))

    def _normalised(self, text: str) -> str:
        return text if self._library.normalizer is None else self._library.normalizer.normalize_str(text)

    def _splits(self, text: str, place: int) -> bool:
        """Whether no word of the pre-tokenizer reaches over the place."""
        before = self._library.pre_tokenizer
        if before is None:
            return False
        return not any(begin < place < end for _, (begin, end) in before.pre_tokenize_str(text))

    def _apart(self, left: str, right: str) -> bool:
        """Whether no token holds the characters on both sides of the place next to each other."""
        spelt = [self._spelt(left), self._spelt(right)]
        return bool(spelt[0] and spelt[1]) and spelt[0][-1] + spelt[1][0] not in self._pairs

    def _spelt(self, text: str) -> str:
        """As the model is given it: with the pre-tokenizer's replacements of spaces and bytes."""
        before = self._library.pre_tokenizer
        return text if before is None else "".join(word for word, _ in before.pre_tokenize_str(text))

    @cached_property
    def _pairs(self) -> set[str]:
        vocabulary = self._library.get_vocab(with_added_tokens=False)
        return {token[n : n + 2] for token in vocabulary for n in range(len(token) - 1)}
