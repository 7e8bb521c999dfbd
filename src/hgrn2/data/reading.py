"""Opening what a user points at: plain, .xz or .gz bytes, with every failure as one line that names the file."""

import codecs
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from hgrn2.errors import UserError
from hgrn2.files import open_regular
from hgrn2.settings import refuse

COMPRESSED = (".xz", ".gz")
# Longer ones first: UTF-32's little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A file open for reading: `stream` gives its uncompressed bytes, `raw` stands at the place on disk."""

    stream: IO[bytes]
    raw: IO[bytes]


def plain_name(path: Path) -> str:
    """The file's name in lower case without a compression suffix: `A.jsonl.xz` is `a.jsonl`."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return name


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[Opened]:
    """Open a file, through xz or gzip where its suffix says so; missing, unreadable or damaged is a `UserError`."""
    try:
        with open_regular(path) as raw, _through(path, raw) as stream:
            yield Opened(stream, raw)
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged or is not {path.suffix} data: {error}") from None


def _through(path: Path, raw: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    if path.suffix.lower() == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    return contextlib.nullcontext(raw)


def encoding_of(head: bytes, name: object) -> tuple[str, int]:
    """(encoding, bytes of its byte order mark) of a text from its first bytes, 64 or more where it has as many: what
    the mark says, else UTF-8. UTF-16 without a mark, which UTF-8 may pass for, is a `UserError`."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    # Every other byte zero, and not all: Latin letters in UTF-16.
    start = head[:64]
    zeros = [len(start) >= 4 and not any(start[first::2]) and any(start) for first in (0, 1)]
    refuse(any(zeros), f"{name} seems to be UTF-16 without a byte order mark; save it as UTF-8")
    return "utf-8", 0


def decode_text(data: bytes, name: object) -> str:
    """A whole text without its byte order mark; bytes that are not its encoding are a `UserError`."""
    encoding, mark = encoding_of(data, name)
    try:
        return data[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        where = f"{name} is not {encoding.upper()} at byte {mark + error.start}"
        raise UserError(f"{where}; convert it first, for example with iconv") from None


def read_text(path: Path, limit: int) -> str:
    """A whole small file as text; more than `limit` bytes or bytes that are not UTF-8 are a `UserError`."""
    with open_binary(path) as opened:
        data = opened.stream.read(limit + 1)
    refuse(len(data) > limit, f"{path} holds more than {limit:,} bytes; that is no tokenizer file")
    return decode_text(data, path)
