"""SentencePiece models, `.model` files, encoded by the library of that name (`pip install hgrn2[sentencepiece]`).

A model may write a space before every text and may drop spaces at its ends or between words. Of text that goes on after
other text the library is asked with a copy of the model that does not write that space: settings at the end of the file
take the place of earlier ones, as protocol buffers have it.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.parts import Cutter
from hgrn2.data.tokenizer_base import Ids, Tokenizer, library_threads, utf8
from hgrn2.errors import UserError
from hgrn2.files import write_bytes
from hgrn2.settings import refuse

FILE = "tokenizer.model"
SPACE = "▁"
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Numbers of fields in sentencepiece_model.proto.
PIECE, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER = 1, 2, 3, 4, 5
CHARSMAP, DUMMY_PREFIX, SUFFIX = 2, 3, 24
LARGEST = 1 << 22  # pieces


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. Only text is encoded: no begin or end is added, and control symbols that are spelt out in
    a text are ordinary characters. What the model does not know is its unknown piece, which decodes to nothing."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str = FILE) -> None:
        """`model` is the content of the file, `where` its name in errors."""
        self._model, self._where = model, where
        self._fields = _checked(model, where)
        self._library = _make_library(model, where)
        self.vocab_size = int(self._library.get_piece_size())
        end = int(self._library.eos_id())
        self.eot = end if 0 <= end < self.vocab_size else None

    def __reduce__(self) -> Any:
        return SentencePieceTokenizer, (self._model, self._where)

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        return self.encode_documents([text], [continues])[0]

    def encode_documents(self, texts: list[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        going_on = [False] * len(texts) if continues is None else list(continues)
        chosen = [self._for(text) if goes_on else self._library for text, goes_on in zip(texts, going_on, strict=True)]
        found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(texts)
        for library in dict.fromkeys(chosen):
            places = [place for place, one in enumerate(chosen) if one is library]
            for place, ids in zip(places, self._encoded(library, [texts[place] for place in places]), strict=True):
                found[place] = np.asarray(ids, dtype=np.int32)
        return found

    def _encoded(self, library: Any, texts: list[str]) -> list[list[int]]:
        try:
            return library.encode(texts, out_type=int, num_threads=library_threads())
        except Exception as error:  # the library raises RuntimeError and others
            raise UserError(f"{self._where} cannot encode a text: {' '.join(str(error).split())}") from None

    def cut(self, text: str, limit: int, before: int = 0) -> int | None:
        return self._cutter.cut(text, limit, before)

    def decode_bytes(self, ids: Ids, *, continues: bool = False) -> bytes:
        array = self.check_ids(ids)
        spelt = [self._table[index] for index in array.tolist()]
        if self._adds_space:
            for begin in ([] if continues else [0]) + (np.flatnonzero(array == self.eot) + 1).tolist():
                first = next((n for n in range(begin, len(spelt)) if spelt[n]), None)
                if first is not None:
                    spelt[first] = spelt[first].removeprefix(b" ")
        return b"".join(spelt)

    def _decides(self) -> Any:
        import hashlib

        return {"kind": self.kind, "model": hashlib.sha256(self._model).hexdigest()}

    def write_files(self, folder: Path) -> None:
        write_bytes(folder / FILE, self._model)
        super().write_files(folder)

    @cached_property
    def _adds_space(self) -> bool:
        return self._library.normalize("a") == f"{SPACE}a"

    @cached_property
    def _drops_spaces(self) -> bool:
        return self._library.normalize("a  a") == self._library.normalize("a a")

    @cached_property
    def _table(self) -> list[bytes]:
        """The bytes of each id."""
        library, table = self._library, []
        for index in range(self.vocab_size):
            piece = library.id_to_piece(index)
            if library.is_byte(index):
                table.append(bytes.fromhex(piece[3:5]) if BYTE.fullmatch(piece) else b"")
            elif library.is_control(index) or library.is_unknown(index):
                table.append(b"")
            else:
                table.append(piece.replace(SPACE, " ").encode())
        return table

    @cached_property
    def _within(self) -> Any:
        """For text that goes on inside a word, or with spaces that are kept."""
        return _make_library(self._with_prefix(False), self._where)

    @cached_property
    def _at_word(self) -> Any:
        """For text that goes on with spaces, of which the model drops all and would write one of its own."""
        return _make_library(self._with_prefix(True), self._where)

    def _for(self, text: str) -> Any:
        return self._at_word if self._drops_spaces and text[:1].isspace() else self._within

    def _with_prefix(self, prefix: bool) -> bytes:
        # Samples that the model tests itself with would not come out as they were.
        kept = b"".join(raw for number, _, raw in self._fields if number != SELF_TEST)
        return kept + bytes([NORMALIZER << 3 | 2, 2, DUMMY_PREFIX << 3, prefix])

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(
            lambda texts: [ids.tolist() for ids in self.encode_documents(texts, [True] * len(texts))], self._apart
        )

    def _apart(self, left: str, right: str) -> bool:
        """Whether no piece holds the characters on both sides next to each other, and normalising sees no more."""
        one, other, both = (self._for(text).normalize(text) for text in (left, right, left + right))
        return bool(one and other) and one + other == both and one[-1] + other[0] not in self._pairs

    @cached_property
    def _pairs(self) -> set[str]:
        pieces = [self._library.id_to_piece(index) for index in range(self.vocab_size)]
        return {piece[n : n + 2] for piece in pieces for n in range(len(piece) - 1)}


def _make_library(model: bytes, where: str) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UserError(f"reading {where} needs the sentencepiece library: pip install hgrn2[sentencepiece]") from None
    try:
        library = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces = library.get_piece_size()
        library.normalize("a")
        for index in range(pieces):
            library.id_to_piece(index).encode()
    except Exception as error:  # the library raises RuntimeError, and others for bytes that are no text
        raise UserError(f"{where} is not a usable SentencePiece model: {' '.join(str(error).split())}") from None
    refuse(pieces == 0, f"{where} has no pieces")
    return library


def _checked(model: bytes, where: str) -> list[tuple[int, Any, bytes]]:
    """The fields of the file; what this module could not be right about is refused."""
    fields = list(_fields(model, where))
    count = sum(number == PIECE for number, _, _ in fields)
    refuse(count == 0, f"{where} is not a SentencePiece model (it has no pieces)")
    refuse(count > LARGEST, f"{where} has {count:,} pieces; {LARGEST:,} are read at most")
    inner = {
        (outer, number): value
        for outer, content, _ in fields
        if outer in (TRAINER, NORMALIZER, DENORMALIZER) and isinstance(content, bytes)
        for number, value, _ in _fields(content, where)
    }
    refuse(bool(inner.get((TRAINER, SUFFIX))), f"{where} writes spaces after words rather than before; it is not read")
    refuse(bool(inner.get((DENORMALIZER, CHARSMAP))), f"{where} rewrites decoded text; it is not read")
    return fields


def _fields(data: bytes, where: str) -> Iterator[tuple[int, Any, bytes]]:
    """(number, value, bytes with the header) of each field of a protocol buffer."""
    at = 0
    while at < len(data):
        begin = at
        key, at = _varint(data, at, where)
        wire, number = key & 7, key >> 3
        if wire == 0:
            value, at = _varint(data, at, where)
        elif wire in (1, 2, 5):
            size = 8 if wire == 1 else 4
            if wire == 2:
                size, at = _varint(data, at, where)
            value, at = data[at : at + size], at + size
        else:
            raise UserError(f"{where} is not a SentencePiece model")
        refuse(at > len(data), f"{where} is not a SentencePiece model, or is cut off")
        yield number, value, data[begin:at]


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        refuse(at >= len(data), f"{where} is not a SentencePiece model, or is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise UserError(f"{where} is not a SentencePiece model")
