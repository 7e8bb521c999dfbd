"""Vocabularies from files: any `tokenizer.json`, and GPT-2's pair of files, which becomes a `tokenizer.json` first.

The encoding itself is done by the `tokenizers` library (`pip install hgrn2[text]`), loaded when the first one is made.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.reading import COMPRESSED, plain_name, read_text
from hgrn2.data.tokenizer import Ids, Tokenizer, utf8
from hgrn2.errors import UserError
from hgrn2.files import write_text
from hgrn2.settings import refuse

LIMIT = 1 << 28  # bytes of one vocabulary file; the largest in use (256k entries) have about 35 MB
END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end|>")
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

    def encode(self, text: str) -> np.ndarray:
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)  # the library would raise its own error over a lone surrogate
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Ids) -> str:
        if self._decoders & {"ByteLevel"}:
            return super().decode(ids)
        return self._library.decode(self.check_ids(ids).tolist(), skip_special_tokens=True)

    def decode_bytes(self, ids: Ids) -> bytes:
        if self._table is None:
            return self.decode(ids).encode()
        table = self._table
        return b"".join(table[index] for index in self.check_ids(ids).tolist())

    def bytes_per(self, ids: Ids) -> int:
        if self._table is None:
            return len(self.decode_bytes(ids))
        return int(self._lengths[self.check_ids(ids)].sum())

    def _decides(self) -> Any:
        return self._content

    def save(self, folder: Path) -> None:
        write_text(Path(folder) / "tokenizer.json", self._text)
        super().save(folder)

    @cached_property
    def _decoders(self) -> set[str]:
        return {part["type"] for part in _parts(self._content.get("decoder"), "decoders")}

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
        elif "Metaspace" in self._decoders or {"Replace", "ByteFallback"} <= self._decoders:
            spell = _from_sentencepiece
        else:
            return None
        table = [b""] * self.vocab_size
        for token, index in self._vocabulary.items():
            table[index] = spell(token)
        for added in self._content.get("added_tokens") or ():
            table[added["id"]] = b"" if added["special"] else added["content"].encode()
        if self.eot is not None:
            table[self.eot] = b""
        return table


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


def _from_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _parts(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, which may be one, a sequence of them, or none."""
    if isinstance(value, dict):
        for part in value.get(key) or ():
            yield from _parts(part, key)
        yield value


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    wrong = not isinstance(content, dict) or not isinstance(content.get("model"), dict)
    refuse(wrong, f"{where} is not a tokenizer.json (it has no model)")
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
    refuse(name.endswith(".model"), f"{path} is a SentencePiece model, which is not read; give its tokenizer.json")
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
    try:
        ids = json.loads(read_text(path, LIMIT))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    fits = isinstance(ids, dict) and all(type(value) is int and value >= 0 for value in ids.values())
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
