"""Vocabularies from files: any `tokenizer.json`, and GPT-2's pair of files, which becomes a `tokenizer.json` first.

The encoding itself is done by the `tokenizers` library (`pip install hgrn2[text]`), loaded when the first one is made.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.parts import Cutter, Seams, adds_space, fresh_start, steps, without_beginning
from hgrn2.data.reading import COMPRESSED, plain_name, read_text
from hgrn2.data.tokenizer_base import END_OF_DOCUMENT, Ids, Tokenizer, utf8
from hgrn2.errors import UserError
from hgrn2.files import parse_json, write_text
from hgrn2.settings import refuse

LIMIT = 1 << 28  # bytes of one vocabulary file; the largest in use (256k entries) have about 35 MB
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
PAIRS = (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json"))  # OpenAI's names and Hugging Face's


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`. Truncation, padding and added begin or end tokens are off: only the text is encoded."""

    kind = "tokenizer.json"

    def __init__(self, text: str, where: str = "tokenizer.json") -> None:
        """`text` is the content of the file, `where` its name in errors."""
        self._text = text
        self._content = _parse(text, where)
        self._library = _make_library(text, where)
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        refuse(not vocabulary, f"{where} has an empty vocabulary")
        self._vocabulary = vocabulary
        self.vocab_size = max(vocabulary.values()) + 1
        self.eot = next((vocabulary[name] for name in END_OF_DOCUMENT if name in vocabulary), None)

    def __reduce__(self) -> Any:
        return JsonTokenizer, (self._text,)  # to a process of our own, which reads it as anew

    @property
    def text(self) -> str:
        """The content of the `tokenizer.json`."""
        return self._text

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        return self.encode_documents([text], [continues])[0]

    def encode_documents(self, texts: list[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        for text in texts:
            utf8(text)  # the library would raise its own error over a lone surrogate
        if continues is None or self._continuing is None:
            return _encode(self._library, texts)
        # Text that goes on is encoded without a beginning, as far as the vocabulary looks back; see hgrn2.data.parts.
        ends = [self._fresh_start(text) if goes_on else 0 for text, goes_on in zip(texts, continues, strict=True)]
        heads = _encode(self._continuing, [text[:end] for text, end in zip(texts, ends, strict=True)])
        tails = _encode(self._library, [text[end:] for text, end in zip(texts, ends, strict=True)])
        return [np.concatenate(both) for both in zip(heads, tails, strict=True)]

    def cut(self, text: str, limit: int, before: int = 0) -> int | None:
        return self._cutter.cut(text, limit, before)

    def decode(self, ids: Ids, *, continues: bool = False) -> str:
        if self._table is not None:
            return super().decode(ids, continues=continues)
        return self._library.decode(self.check_ids(ids).tolist(), skip_special_tokens=True)

    def decode_bytes(self, ids: Ids, *, continues: bool = False) -> bytes:
        if self._table is None:
            return self.decode(ids).encode()
        table, array = self._table, self.check_ids(ids)
        spelt = [table[index] for index in array.tolist()]
        if self._adds_space:
            for begin in ([] if continues else [0]) + (np.flatnonzero(array == self.eot) + 1).tolist():
                first = next((n for n in range(begin, len(spelt)) if spelt[n]), None)
                if first is not None:
                    spelt[first] = spelt[first].removeprefix(b" ")
        return b"".join(spelt)

    def bytes_per(self, ids: Ids, *, continues: bool = False) -> int:
        if self._table is None or self._adds_space:
            return len(self.decode_bytes(ids, continues=continues))
        return int(self._lengths[self.check_ids(ids)].sum())

    def _decides(self) -> Any:
        return self._content

    def write_files(self, folder: Path) -> None:
        write_text(folder / "tokenizer.json", self._text)
        super().write_files(folder)

    @cached_property
    def _decoders(self) -> set[str]:
        return {part["type"] for part in steps(self._content.get("decoder"), "decoders")}

    @cached_property
    def _adds_space(self) -> bool:
        return adds_space(self._content)

    @cached_property
    def _continuing(self) -> Any:
        """The library's tokenizer for text that goes on after other text; None where that makes no difference."""
        content = without_beginning(self._content)
        return None if content is None else _make_library(json.dumps(content, ensure_ascii=False), "tokenizer.json")

    @cached_property
    def _fresh(self) -> re.Pattern[str] | None:
        return fresh_start(self._content)

    def _fresh_start(self, text: str) -> int:
        found = None if self._fresh is None else self._fresh.search(text)
        return len(text) if found is None else found.start()

    @cached_property
    def _cutter(self) -> Cutter:
        library = self._library if self._continuing is None else self._continuing
        return Cutter(
            lambda texts: [ids.tolist() for ids in self.encode_documents(texts, [True] * len(texts))], Seams(library)
        )

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(token) for token in self._table or ()], dtype=np.int64)

    @cached_property
    def _table(self) -> list[bytes] | None:
        """The bytes of each id by itself, where the kind of vocabulary has such a thing; else None.

        Byte-level vocabularies spell bytes as printable characters. SentencePiece-like ones spell a space as U+2581
        and may have one token a byte, `<0x0A>`. Others join tokens by rules of their own.
        """
        if "ByteLevel" in self._decoders:
            alphabet = byte_alphabet()
            spell = lambda token: _from_alphabet(token, alphabet)  # noqa: E731
        elif self._spells_spaces():
            spell = lambda token: _from_sentencepiece(token, self._falls_back)  # noqa: E731
        else:
            return None
        table = [b""] * self.vocab_size
        for token, index in self._vocabulary.items():
            table[index] = spell(token)
        for added in self._content.get("added_tokens") or ():
            if added["special"] and not (self._falls_back and BYTE.fullmatch(added["content"])):
                table[added["id"]] = b""
            elif not added["special"]:
                table[added["id"]] = added["content"].encode()
        if self.eot is not None:
            table[self.eot] = b""
        return table

    @property
    def _falls_back(self) -> bool:
        """Whether text outside the vocabulary is spelt in tokens of one byte each, `<0x0A>`."""
        return bool(self._content["model"].get("byte_fallback")) or "ByteFallback" in self._decoders

    def _spells_spaces(self) -> bool:
        """Whether tokens are texts in which U+2581 stands for a space, joined with nothing between."""
        if "Metaspace" in self._decoders:
            return True
        replaced = [
            (step["pattern"].get("String"), step["content"])
            for step in steps(self._content.get("decoder"), "decoders")
            if step["type"] == "Replace"
        ]
        return replaced == [("▁", " ")] and self._decoders <= {"Sequence", "Replace", "ByteFallback", "Fuse", "Strip"}


def _encode(library: Any, texts: list[str]) -> list[np.ndarray]:
    encodings = library.encode_batch_fast(texts, add_special_tokens=False)
    return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where it is printable, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_alphabet(token: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()  # an entry spelt as plain text, as the library's own decoder takes it


def _from_sentencepiece(token: str, bytes_too: bool) -> bytes:
    if bytes_too and BYTE.fullmatch(token):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _parse(text: str, where: str) -> dict[str, Any]:
    content = parse_json(text, where, dict)
    refuse(not isinstance(content.get("model"), dict), f"{where} is not a tokenizer.json (it has no model)")
    return content


def _make_library(text: str, where: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"reading {where} needs the tokenizers library: pip install hgrn2[text]") from None
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{where} is not a usable tokenizer.json: {error}") from None
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # text is text, see hgrn2.data.tokenizer
    return library


def load_vocabulary(path: Path) -> JsonTokenizer:
    """A `tokenizer.json` or a GPT-2-style pair, from one of its files or from the folder that holds it."""
    if path.is_dir():
        return _from_folder(path)
    name = plain_name(path)
    for pair in PAIRS:
        ending = next((ending for ending in pair if name.endswith(ending)), None)
        if ending:
            found = _pairs_in(path.parent, name.removesuffix(ending))
            refuse(not found, f"{path} has no partner: {' and '.join(pair)} belong together")
            return _from_pair(*found[0])
    return JsonTokenizer(read_text(path, LIMIT), str(path))


def _from_folder(folder: Path) -> JsonTokenizer:
    for suffix in ("", *COMPRESSED):
        candidate = folder / f"tokenizer.json{suffix}"
        if candidate.is_file():
            return JsonTokenizer(read_text(candidate, LIMIT), str(candidate))
    found = _pairs_in(folder)
    names = " or ".join(" with ".join(pair) for pair in PAIRS)
    refuse(not found, f"{folder} holds no tokenizer.json and no {names}")
    several = ", ".join(merges.name for merges, _ in found)
    refuse(len(found) > 1, f"{folder} holds several vocabularies ({several}); name one of the files")
    return _from_pair(*found[0])


def _pairs_in(folder: Path, prefix: str | None = None) -> list[tuple[Path, Path]]:
    """The (merges, vocabulary) files in a folder that belong together, in name order; only one prefix if given."""
    files = {plain_name(file): file for file in sorted(folder.iterdir()) if file.is_file()}
    pairs = []
    for name, file in files.items():
        for merges, vocabulary in PAIRS:
            start = name.removesuffix(merges)
            partner = files.get(start + vocabulary)
            if name.endswith(merges) and partner and prefix in (None, start):
                pairs.append((file, partner))
    return pairs


def _from_pair(merges: Path, vocabulary: Path) -> JsonTokenizer:
    """GPT-2's files as the `tokenizer.json` that means the same: byte-level BPE with GPT-2's own splitting."""
    ids = _read_ids(vocabulary)
    special = END_OF_DOCUMENT[0]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[special], "content": special, **flags}] if special in ids else [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": _read_merges(merges)},
    }
    return JsonTokenizer(json.dumps(content, ensure_ascii=False), f"{merges} with {vocabulary.name}")


def _read_ids(path: Path) -> dict[str, int]:
    ids = parse_json(read_text(path, LIMIT), str(path), dict)
    fits = all(type(value) is int and 0 <= value < 1 << 31 for value in ids.values())
    refuse(not fits, f"{path} is not a vocabulary (an object from token to id)")
    return ids


def _read_merges(path: Path) -> list[list[str]]:
    merges = []
    for number, line in enumerate(read_text(path, LIMIT).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        refuse(len(pair) != 2, f"{path}:{number}: a merge is two tokens with one space between, not {line[:60]!r}")
        merges.append(pair)
    return merges
