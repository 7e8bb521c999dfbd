"""Documents from files as a stream: text files, folders of them, JSONL; each also as .xz or .gz.

A text file is one document unless `split` says otherwise, a line of JSONL is one. Long documents come in several
pieces, so that memory stays bounded by `BLOCK` characters whatever the file's size; joining the pieces gives the text
back. Two things that are no text go: a byte order mark, and with `newlines="unix"` the carriage returns of line ends.
"""

import codecs
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hgrn2.data.reading import Opened, encoding_of, open_binary, plain_name
from hgrn2.data.splitting import Piece, one_document, parse_splitting, split_documents
from hgrn2.data.tokenizer_base import utf8
from hgrn2.errors import UserError
from hgrn2.files import parse_json
from hgrn2.settings import refuse

BLOCK = 1 << 20  # characters in one piece at most, and bytes read at a time
LINE_LIMIT = 1 << 28  # bytes of one JSONL line; a longer one is taken for a mistake rather than for a document
JSON_LINES = (".jsonl", ".ndjson")

OnRead = Callable[[int], None]
Newlines = Literal["unix", "keep"]


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


class Sources:
    """The inputs in reading order: files as given, folders replaced by their files (recursive, by name).

    Every visible file of a folder is read; JSONL by its suffix, anything else as UTF-8 text (UTF-16 where its byte
    order mark says so). Documents without text are skipped. A missing input, or one without any text, is a `UserError`.
    `newlines`: "unix" makes every CR LF and lone CR a LF, "keep" leaves them. `split`: how a text file becomes
    documents, see `hgrn2.data.splitting`.
    """

    def __init__(
        self,
        inputs: Sequence[str | Path],
        json_field: str = "text",
        *,
        newlines: Newlines = "unix",
        split: str = "none",
    ) -> None:
        refuse(not inputs, "no input is given")
        refuse(newlines not in ("unix", "keep"), f"newlines are {newlines!r}; choose unix or keep")
        self.json_field, self.newlines, self.splitting = json_field, newlines, parse_splitting(split)
        self._inputs = [(path, _files_of(path)) for path in map(Path, inputs)]
        self.size = sum(file.stat().st_size for file in self.files)
        only_lines = self.splitting.kind != "none" and all(_is_json_lines(file) for file in self.files)
        refuse(only_lines, f"--split {split} divides text files; of these JSONL inputs each line is a document already")

    @property
    def files(self) -> list[Path]:
        """All files, in reading order."""
        return [file for _, files in self._inputs for file in files]

    def pieces(self, on_read: OnRead | None = None, found: Survey | None = None) -> Iterator[Piece]:
        """Every document, piece by piece. `on_read` is told the bytes on disk read so far, out of `size`; marks and
        carriage returns are counted in `found`."""
        found = found or Survey()
        before = 0
        for path, files in self._inputs:
            empty = True
            for file in files:
                for piece in self._read(file, before, on_read, found):
                    empty = False
                    yield piece
                before += file.stat().st_size
            refuse(empty, f"{path} is empty" if path.is_file() else f"{path} holds no text")

    def survey(self, *, alphabet: bool = False, on_read: OnRead | None = None) -> Survey:
        """Read everything once: find every mistake before long work begins, and count."""
        found = Survey()
        for piece in self.pieces(on_read, found):
            found.documents += piece.ends
            found.characters += len(piece.text)
            if alphabet:
                found.alphabet.update(piece.text)
        return found

    def documents(self) -> Iterator[str]:
        """Every document, whole."""
        parts: list[str] = []
        for piece in self.pieces():
            parts.append(piece.text)
            if piece.ends:
                yield "".join(parts)
                parts = []

    def _read(self, file: Path, before: int, on_read: OnRead | None, found: Survey) -> Iterator[Piece]:
        with open_binary(file) as opened:
            if _is_json_lines(file):
                pieces = self._json_documents(opened, file, found)
            else:
                blocks = self._with_newlines(_decoded(opened, file, found), found)
                pieces = split_documents(blocks, self.splitting, BLOCK)
            for piece in pieces:
                yield piece
                if on_read:
                    on_read(before + opened.raw.tell())

    def _with_newlines(self, blocks: Iterator[str], found: Survey) -> Iterator[str]:
        translate = self.newlines == "unix"
        decoder = io.IncrementalNewlineDecoder(None, translate)  # a CR LF may lie on a border of two blocks
        for block in blocks:
            found.carriage_returns += block.count("\r")
            text = decoder.decode(block) if translate else block
            if text:
                yield text
        if translate and (rest := decoder.decode("", final=True)):
            yield rest

    def _json_documents(self, opened: Opened, file: Path, found: Survey) -> Iterator[Piece]:
        offset, number = 0, 0
        while line := opened.stream.readline(LINE_LIMIT + 1):
            number += 1
            where = f"{file}:{number}"
            refuse(len(line) > LINE_LIMIT, f"{where}: the line is longer than {LINE_LIMIT:,} bytes; is this JSONL?")
            if number == 1:
                encoding, mark = encoding_of(line, file)
                refuse(encoding != "utf-8", f"{file} is {encoding.upper()}; {CONVERT}")
                found.byte_order_marks += bool(mark)
                line, offset = line[mark:], mark
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(_not_utf8(file, offset + error.start)) from None
            offset += len(line)
            if text.strip():
                blocks = self._with_newlines(iter((_field_of(text, self.json_field, where),)), found)
                yield from one_document(blocks, BLOCK)


def _is_json_lines(file: Path) -> bool:
    return plain_name(file).endswith(JSON_LINES)


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


def _decoded(opened: Opened, file: Path, found: Survey) -> Iterator[str]:
    """Strict UTF-8, or what a byte order mark says, in blocks; wrong bytes are a `UserError` with their offset in the
    uncompressed file."""
    block = opened.stream.read(max(BLOCK, 64))
    encoding, mark = encoding_of(block, file)
    found.byte_order_marks += bool(mark)
    found.utf16_files += encoding != "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    block, done = block[mark:], mark
    while True:
        held = len(decoder.getstate()[0])  # bytes of a character that the last block cut in two
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(file, done - held + error.start, encoding)) from None
        if text:
            yield text
        if not block:
            return
        done += len(block)
        block = opened.stream.read(BLOCK)


CONVERT = "convert it first, for example with iconv"


def _not_utf8(file: Path, offset: int, encoding: str = "utf-8") -> str:
    return f"{file} is not {encoding.upper()} at byte {offset}; {CONVERT}"


def _field_of(line: str, json_field: str, where: str) -> str:
    row = parse_json(line, f"{where}: the line", dict, any_number=True)
    refuse(json_field not in row, f"{where}: there is no field {json_field!r} (fields: {', '.join(row) or 'none'})")
    text = row[json_field]
    refuse(not isinstance(text, str), f"{where}: field {json_field!r} is not text")
    try:
        utf8(text)  # JSON's escapes can spell half a surrogate pair
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return text
