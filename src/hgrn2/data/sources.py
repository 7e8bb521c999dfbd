"""Documents from files as a stream: text files, folders of them, JSONL; each also as .xz or .gz.

A text file is one document, a line of JSONL is one. Long documents come in several pieces, so that memory stays bounded
by `BLOCK` characters whatever the file's size; joining the pieces gives the text back exactly (no newline is touched).
"""

import codecs
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hgrn2.data.reading import Opened, open_binary, plain_name
from hgrn2.data.tokenizer import utf8
from hgrn2.errors import UserError
from hgrn2.settings import refuse

BLOCK = 1 << 20  # characters in one piece at most, and bytes read at a time
LINE_LIMIT = 1 << 28  # bytes of one JSONL line; a longer one is taken for a mistake rather than for a document
JSON_LINES = (".jsonl", ".ndjson")

# Where a long text may be cut, best first. At the first two a byte-level BPE with GPT-2's splitting gives the same
# tokens as without the cut: the break lies between two of its words. `tests/data/test_sources.py` holds it to that.
CUTS = (re.compile(r"(?<=\S)\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)"), re.compile(r"\n"))
CUT_WINDOW = 1 << 16

OnRead = Callable[[int], None]


class Piece(NamedTuple):
    """A part of a document; `ends` tells that the document ends with it. The text is never empty."""

    text: str
    ends: bool


@dataclass
class Survey:
    """What the inputs hold: known after one reading, before any token is written."""

    documents: int = 0
    characters: int = 0
    alphabet: set[str] = field(default_factory=set)


class Sources:
    """The inputs in reading order: files as given, folders replaced by their files (recursive, by name).

    Every visible file of a folder is read; JSONL by its suffix, anything else as UTF-8 text. Documents without text
    are skipped. A missing input, or one without any text, is a `UserError`.
    """

    def __init__(self, inputs: Sequence[str | Path], json_field: str = "text") -> None:
        refuse(not inputs, "no input is given")
        self.json_field = json_field
        self._inputs = [(path, _files_of(path)) for path in map(Path, inputs)]
        self.size = sum(file.stat().st_size for file in self.files)

    @property
    def files(self) -> list[Path]:
        """All files, in reading order."""
        return [file for _, files in self._inputs for file in files]

    def pieces(self, on_read: OnRead | None = None) -> Iterator[Piece]:
        """Every document, piece by piece. `on_read` is told the bytes on disk read so far, out of `size`."""
        before = 0
        for path, files in self._inputs:
            empty = True
            for file in files:
                for piece in self._read(file, before, on_read):
                    empty = False
                    yield piece
                before += file.stat().st_size
            refuse(empty, f"{path} is empty" if path.is_file() else f"{path} holds no text")

    def survey(self, *, alphabet: bool = False, on_read: OnRead | None = None) -> Survey:
        """Read everything once: find every mistake before long work begins, and count."""
        found = Survey()
        for piece in self.pieces(on_read):
            found.documents += piece.ends
            found.characters += len(piece.text)
            if alphabet:
                found.alphabet.update(piece.text)
        return found

    def _read(self, file: Path, before: int, on_read: OnRead | None) -> Iterator[Piece]:
        with open_binary(file) as opened:
            if plain_name(file).endswith(JSON_LINES):
                pieces = _json_documents(opened, file, self.json_field)
            else:
                pieces = _in_pieces(_decoded(opened, file))
            for piece in pieces:
                yield piece
                if on_read:
                    on_read(before + opened.raw.tell())


def _files_of(path: Path) -> list[Path]:
    refuse(not path.exists(), f"{path} does not exist")
    if not path.is_dir():
        refuse(not path.is_file(), f"{path} is neither a file nor a folder")
        return [path]
    files = []
    for folder, folders, names in os.walk(path, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
    refuse(not files, f"{path} holds no files")
    return [file for file in files if file.is_file()]


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} may not be read: {error.strerror}")  # os.walk alone would pass over it


def _decoded(opened: Opened, file: Path) -> Iterator[str]:
    """Strict UTF-8 in blocks; wrong bytes are a `UserError` with their offset in the uncompressed file."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    done = 0
    while True:
        block = opened.stream.read(BLOCK)
        held = len(decoder.getstate()[0])  # bytes of a character that the last block cut in two
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(file, done - held + error.start)) from None
        if text:
            yield text
        if not block:
            return
        done += len(block)


def _not_utf8(file: Path, offset: int) -> str:
    return f"{file} is not UTF-8 at byte {offset}; convert it first, for example with iconv"


def _in_pieces(blocks: Iterator[str]) -> Iterator[Piece]:
    """One document of blocks as pieces of at most `BLOCK` characters."""
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > BLOCK:
            end = _cut(rest, BLOCK)
            yield Piece(rest[:end], False)
            rest = rest[end:]
    if rest:
        yield Piece(rest, True)


def _cut(text: str, limit: int) -> int:
    """Where to cut a text that is longer than `limit`: the last good place in the window before the limit."""
    begin = max(limit - CUT_WINDOW, 0)
    for pattern in CUTS:
        ends = [match.end() for match in pattern.finditer(text, begin, limit + 1) if begin < match.end() <= limit]
        if ends:
            return ends[-1]
    return limit


def _json_documents(opened: Opened, file: Path, json_field: str) -> Iterator[Piece]:
    offset, number = 0, 0
    while line := opened.stream.readline(LINE_LIMIT + 1):
        number += 1
        where = f"{file}:{number}"
        refuse(len(line) > LINE_LIMIT, f"{where}: the line is longer than {LINE_LIMIT:,} bytes; is this JSONL?")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(file, offset + error.start)) from None
        offset += len(line)
        if text.strip():
            yield from _in_pieces(iter((_field_of(text, json_field, where),)))


def _field_of(line: str, json_field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: the line is not valid JSON: {error}") from None
    refuse(not isinstance(row, dict), f"{where}: the line is not a JSON object")
    refuse(json_field not in row, f"{where}: there is no field {json_field!r} (fields: {', '.join(row) or 'none'})")
    text = row[json_field]
    refuse(not isinstance(text, str), f"{where}: field {json_field!r} is not text")
    try:
        utf8(text)  # JSON's escapes can spell half a surrogate pair
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return text
