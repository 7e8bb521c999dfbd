"""What the inputs are read as: blocks of some text, each of which any process can make documents of by itself."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hgrn2.data.reading import encoding_of
from hgrn2.data.splitting import Piece, one_document
from hgrn2.data.tokenizer_base import utf8
from hgrn2.errors import UserError
from hgrn2.files import parse_json
from hgrn2.settings import refuse

BLOCK = 1 << 20  # characters in one piece at most, and bytes or characters in one unit, as a rule
CONVERT = "convert it first, for example with iconv"


@dataclass
class Survey:
    """What the inputs hold: known after one reading, before any token is written."""

    documents: int = 0
    characters: int = 0
    alphabet: set[str] = field(default_factory=set)
    byte_order_marks: int = 0
    """Files that began with one; it is no part of the text."""
    utf16_files: int = 0
    """Of these, files in UTF-16 or UTF-32."""
    carriage_returns: int = 0
    """Before conversion."""

    def add(self, other: "Survey") -> None:
        """Count what another has found too."""
        self.documents += other.documents
        self.characters += other.characters
        self.alphabet |= other.alphabet
        self.byte_order_marks += other.byte_order_marks
        self.utf16_files += other.utf16_files
        self.carriage_returns += other.carriage_returns


class Place(NamedTuple):
    """Where a unit comes from."""

    input: int
    """Number of the input."""
    read: int
    """Bytes on disk that have been read once the unit is done with, over all inputs."""


class Unit(Protocol):
    """Some text of one file."""

    @property
    def place(self) -> Place: ...

    def pieces(self, found: Survey) -> Iterator[Piece]:
        """Its documents, piece by piece; what was not text is counted in `found`."""
        ...


class Pieces(NamedTuple):
    """A piece of a text file, which the reader has divided into documents; they may run over several units."""

    place: Place
    piece: Piece | None
    """None after the last one of a file."""
    counted: Survey
    """What the reader found since the unit before."""

    def pieces(self, found: Survey) -> Iterator[Piece]:
        found.add(self.counted)
        if self.piece is not None:
            yield self.piece


class Texts(NamedTuple):
    """Rows of a table, whole documents each."""

    place: Place
    texts: list[str]
    unix: bool
    where: str

    def pieces(self, found: Survey) -> Iterator[Piece]:
        for text in self.texts:
            check_text(text, self.where)
            yield from one_document(with_newlines(iter((text,)), self.unix, found), BLOCK)


class Lines(NamedTuple):
    """Whole lines of a JSONL file, a document each."""

    place: Place
    data: bytes
    file: str
    number: int
    """Of the first line, from 1."""
    offset: int
    """Of the first byte in the file."""
    json_field: str
    unix: bool

    def pieces(self, found: Survey) -> Iterator[Piece]:
        """One document per line that is not blank; marks and line ends are counted in `found`."""
        offset, number = self.offset, self.number
        for line in io.BytesIO(self.data):
            if number == 1:
                encoding, mark = encoding_of(line, self.file)
                refuse(encoding != "utf-8", f"{self.file} is {encoding.upper()}; {CONVERT}")
                found.byte_order_marks += bool(mark)
                line, offset = line[mark:], mark
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(not_utf8(self.file, offset + error.start)) from None
            if text.strip():
                value = _field_of(text, self.json_field, f"{self.file}:{number}")
                yield from one_document(with_newlines(iter((value,)), self.unix, found), BLOCK)
            offset += len(line)
            number += 1


def not_utf8(file: object, offset: int, encoding: str = "utf-8") -> str:
    """The message that a file is not what its encoding should be."""
    return f"{file} is not {encoding.upper()} at byte {offset}; {CONVERT}"


def with_newlines(blocks: Iterator[str], unix: bool, found: Survey) -> Iterator[str]:
    """The blocks of a text with every line end as LF where `unix`; carriage returns are counted."""
    decoder = io.IncrementalNewlineDecoder(None, unix)  # a CR LF may lie on a border of two blocks
    for block in blocks:
        found.carriage_returns += block.count("\r")
        text = decoder.decode(block) if unix else block
        if text:
            yield text
    if unix and (rest := decoder.decode("", final=True)):
        yield rest


def check_text(text: str, where: str) -> None:
    """Refuse half a surrogate pair, which JSON's escapes can spell."""
    try:
        utf8(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _field_of(line: str, json_field: str, where: str) -> str:
    row = parse_json(line, f"{where}: the line", dict, any_number=True)
    refuse(json_field not in row, f"{where}: there is no field {json_field!r} (fields: {', '.join(row) or 'none'})")
    text = row[json_field]
    refuse(not isinstance(text, str), f"{where}: field {json_field!r} is not text")
    check_text(text, where)
    return text
