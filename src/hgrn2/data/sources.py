"""Documents as a stream: text files, folders of them, JSONL, Parquet, data sets of Hugging Face's library.

A text file is one document unless `split` says otherwise; a line of JSONL and a row of a table are one. Text and JSONL
may be compressed (.xz, .gz, .zst). Long documents come in several pieces, so that memory stays bounded whatever the
size of a file; joining the pieces gives the text back. Two things that are no text go: a byte order mark, and with
`newlines="unix"` the carriage returns of line ends.
"""

import codecs
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from hgrn2.data import units
from hgrn2.data.reading import Opened, encoding_of, open_binary, plain_name
from hgrn2.data.splitting import Piece, parse_splitting, split_documents
from hgrn2.data.table_rows import Dataset, dataset_of, is_table, parquet_rows
from hgrn2.data.units import Lines, Pieces, Place, Survey, Texts, Unit, not_utf8, with_newlines
from hgrn2.errors import UserError
from hgrn2.pipeline import Workers
from hgrn2.settings import refuse

LINE_LIMIT = 1 << 28  # bytes of one JSONL line; a longer one is taken for a mistake rather than for a document
JSON_LINES = (".jsonl", ".ndjson")
NEWLINE = b"\n"

OnRead = Callable[[int], None]
Newlines = Literal["unix", "keep"]


class Sources:
    """The inputs in reading order: files as given, folders replaced by their files (recursive, by name).

    Every visible file of a folder is read; JSONL and Parquet by their suffixes, anything else as UTF-8 text (UTF-16
    where its byte order mark says so). `hf:NAME` and folders that the library `datasets` saved are data sets.
    `json_field` is the field of a line of JSONL, and the column of a table. Documents without text are skipped. A
    missing input, or one without any text, is a `UserError`. `newlines`: "unix" makes every CR LF and lone CR a LF,
    "keep" leaves them. `split`: how a text file becomes documents, see `hgrn2.data.splitting`.
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
        self.json_field, self.splitting = json_field, parse_splitting(split)
        self._unix = newlines == "unix"
        self._inputs = [(str(path), dataset_of(str(path)) or _files_of(Path(path))) for path in inputs]
        self.size = sum(file.stat().st_size for file in self.files)
        divided = any(not _is_json_lines(file) and not is_table(file) for file in self.files)
        refuse(
            self.splitting.kind != "none" and not divided,
            f"--split {split} divides text files; of these JSONL inputs and tables each row is a document already",
        )

    @property
    def files(self) -> list[Path]:
        """All files, in reading order."""
        return [file for _, files in self._inputs if not isinstance(files, Dataset) for file in files]

    @property
    def names(self) -> set[str]:
        """What the inputs are, so that one can be found in two places: files by their real paths, data sets."""
        sets = {str(found) for _, found in self._inputs if isinstance(found, Dataset)}
        return sets | {str(file.resolve()) for file in self.files}

    def units(self) -> Iterator[Unit]:
        """All of the text in blocks, which other processes can go on with."""
        before = 0
        for number, (_, found) in enumerate(self._inputs):
            if isinstance(found, Dataset):
                rows = found.rows(self.json_field, units.BLOCK)
                yield from (Texts(Place(number, before), texts, self._unix, str(found)) for texts in rows)
                continue
            for file in found:
                yield from self._read(file, Place(number, before))
                before += file.stat().st_size

    def pieces(self) -> Iterator[Piece]:
        """Every document, piece by piece."""
        count = self._counter()
        for unit in self.units():
            for piece in unit.pieces(Survey()):
                count[unit.place.input] += 1
                yield piece
        self._refuse_empty(count)

    def survey(
        self, *, alphabet: bool = False, on_read: OnRead | None = None, workers: Workers | None = None
    ) -> Survey:
        """Read everything once: find every mistake before long work begins, and count. `on_read` is told the bytes on
        disk read so far, out of `size`."""
        found, count = Survey(), self._counter()
        for place, part in (workers or Workers(1)).stream(partial(_look, alphabet), self.units()):
            found.add(part)
            count[place.input] += part.documents
            if on_read:
                on_read(place.read)
        self._refuse_empty(count)
        return found

    def documents(self) -> Iterator[str]:
        """Every document, whole."""
        parts: list[str] = []
        for piece in self.pieces():
            parts.append(piece.text)
            if piece.ends:
                yield "".join(parts)
                parts = []

    def _counter(self) -> list[int]:
        return [0] * len(self._inputs)

    def _refuse_empty(self, count: list[int]) -> None:
        for (name, _), pieces in zip(self._inputs, count, strict=True):
            refuse(not pieces, f"{name} is empty" if Path(name).is_file() else f"{name} holds no text")

    def _read(self, file: Path, before: Place) -> Iterator[Unit]:
        if is_table(file):
            size = file.stat().st_size
            for texts, share in parquet_rows(file, self.json_field, units.BLOCK):
                yield Texts(Place(before.input, before.read + int(share * size)), texts, self._unix, str(file))
            return
        with open_binary(file) as opened:
            if _is_json_lines(file):
                yield from self._lines(opened, file, before)
                return
            found = Survey()
            blocks = with_newlines(_decoded(opened, file, found), self._unix, found)
            for piece in split_documents(blocks, self.splitting, units.BLOCK):
                yield Pieces(Place(before.input, before.read + opened.raw.tell()), piece, _taken(found))
            yield Pieces(Place(before.input, before.read + opened.raw.tell()), None, _taken(found))

    def _lines(self, opened: Opened, file: Path, before: Place) -> Iterator[Lines]:
        """Blocks of whole lines: of what is read at once up to its last line end, and the rest with what follows."""
        offset, number = 0, 1
        held: list[bytes] = []  # blocks of a line whose end has not come
        block = None
        while block != b"":
            block = opened.stream.read(units.BLOCK)
            end = block.rfind(b"\n") + 1
            whole = b""
            if end or not block:
                whole = b"".join([*held, block[:end]])
                held = []
            held += [block[end:]] if block else []
            _refuse_long(whole, sum(map(len, held)), str(file), number)
            if whole:
                place = Place(before.input, before.read + opened.raw.tell())
                yield Lines(place, whole, str(file), number, offset, self.json_field, self._unix)
                offset, number = offset + len(whole), number + whole.count(b"\n")


def _look(alphabet: bool, unit: Unit) -> tuple[Place, Survey]:
    """What one unit holds."""
    found = Survey()
    for piece in unit.pieces(found):
        found.documents += piece.ends
        found.characters += len(piece.text)
        if alphabet:
            found.alphabet.update(piece.text)
    return unit.place, found


def _taken(found: Survey) -> Survey:
    """What was counted so far, from which counting begins anew."""
    taken = Survey()
    taken.add(found)
    found.byte_order_marks = found.utf16_files = found.carriage_returns = 0
    return taken


def _refuse_long(whole: bytes, rest: int, file: str, number: int) -> None:
    """Refuse a line that is too long: among whole ones, or the beginning of `rest` bytes of one."""
    long = f"the line is longer than {LINE_LIMIT:,} bytes; is this JSONL?"
    if len(whole) > LINE_LIMIT:
        for n, line in enumerate(whole.split(b"\n"), start=number):
            refuse(len(line) > LINE_LIMIT, f"{file}:{n}: {long}")
    if rest > LINE_LIMIT:
        raise UserError(f"{file}:{number + whole.count(NEWLINE)}: {long}")


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
    block = opened.stream.read(max(units.BLOCK, 64))
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
            raise UserError(not_utf8(file, done - held + error.start, encoding)) from None
        if text:
            yield text
        if not block:
            return
        done += len(block)
        block = opened.stream.read(units.BLOCK)
