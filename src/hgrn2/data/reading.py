"""Opening what a user points at: plain, .xz, .gz or .zst bytes, with every failure as one line that names the file."""

import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from hgrn2.errors import UserError
from hgrn2.files import open_regular
from hgrn2.settings import refuse

COMPRESSED = (".xz", ".gz", ".zst")
FED = 1 << 10  # compressed bytes given to zstandard at once: they become 32 MiB of text at most
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
    """Open a file, decompressed where its suffix says so; missing, unreadable or damaged is a `UserError`."""
    try:
        with open_regular(path) as raw, _through(path, raw) as stream:
            yield Opened(stream, raw)
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError, BadZstandard) as error:
        raise UserError(f"{path} is damaged or is not {path.suffix} data: {error}") from None


def _through(path: Path, raw: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    if path.suffix.lower() == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_Zstandard(path, raw), 1 << 17)
    return contextlib.nullcontext(raw)


class BadZstandard(Exception):
    """Bytes that are not zstandard's."""


class _Zstandard(io.RawIOBase):
    """The text of zstandard frames laid end to end. The library's own reader ends without a word where a file is cut
    off."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(f"reading {path} needs the zstandard library: pip install hgrn2[data]") from None
        self._library: Any = zstandard
        self._raw, self._text, self._at, self._rest = raw, b"", 0, b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while self._at == len(self._text):
            if not self._more():
                return 0
        size = min(len(buffer), len(self._text) - self._at)
        buffer[:size] = self._text[self._at : self._at + size]
        self._at += size
        return size

    def _more(self) -> bool:
        """Decompress a little further; False at the end."""
        data = self._rest or self._raw.read(FED)
        self._rest = b""
        if not data:
            if self._frame is not None:
                raise EOFError("the file ends in the middle")
            return False
        try:
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            self._text, self._at = self._frame.decompress(data), 0
        except self._library.ZstdError as error:
            raise BadZstandard(str(error)) from None
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None
        return True


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
