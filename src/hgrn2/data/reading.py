"""Opening what a user points at: plain, .xz or .gz bytes, with every failure as one line that names the file."""

import contextlib
import gzip
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from hgrn2.errors import UserError
from hgrn2.settings import refuse

COMPRESSED = (".xz", ".gz")


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
        with open(path, "rb") as raw, _through(path, raw) as stream:
            yield Opened(stream, raw)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except PermissionError:
        raise UserError(f"{path} may not be read (permission denied)") from None
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged or is not {path.suffix} data: {error}") from None


def _through(path: Path, raw: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    if path.suffix.lower() == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    return contextlib.nullcontext(raw)


def read_text(path: Path, limit: int) -> str:
    """A whole small file as text; more than `limit` bytes or bytes that are not UTF-8 are a `UserError`."""
    with open_binary(path) as opened:
        data = opened.stream.read(limit + 1)
    refuse(len(data) > limit, f"{path} holds more than {limit:,} bytes; that is no tokenizer file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}") from None
