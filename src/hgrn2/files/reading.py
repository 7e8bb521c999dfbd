"""Reading what others wrote: regular files only, JSON within bounds, every failure one line that names the file."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hgrn2.errors import UserError

JSON_LIMIT = 1 << 28
"""Bytes of a JSON file at most; the largest tokenizers have about 35 MB."""
_DEPTH = 64  # of objects and lists in each other; real files have less than a dozen
_DIGITS = 40  # of a whole number; Python itself stops at 4,300, and formatting a larger one is an error
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def refuse_special(path: Path) -> None:
    """Refuse what cannot be read to its end and again: a folder, a pipe, a socket, a device. A missing file passes."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it says why; ValueError: a NUL in the name
        return
    _refuse_mode(path, mode)


def _refuse_mode(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file open for reading; what is missing, unreadable or of another kind is a `UserError`.

    It never waits: a pipe without a writer is refused rather than opened.
    """
    path = Path(path)
    with _told(path):
        refuse_special(path)
        # Another process may have put a pipe there since: O_NONBLOCK opens that too, and the mode is looked at again.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        stream = os.fdopen(handle, "rb")
    with stream:
        _refuse_mode(path, os.fstat(stream.fileno()).st_mode)
        yield stream


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except PermissionError:
        raise UserError(f"{path} may not be read (permission denied)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A whole file; more than `limit` bytes are a `UserError`."""
    with open_regular(path) as stream, _told(path):
        data = stream.read() if limit is None else stream.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise UserError(f"{path} has more than {limit:,} bytes")
    return data


def read_text(path: Path, limit: int | None = None) -> str:
    """A whole file as text; bytes that are not UTF-8 are a `UserError` with their place."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; convert it first") from None


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open_regular(path) as stream, _told(path):
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, kind: type | None = None, *, limit: int = JSON_LIMIT) -> Any:
    """Read a JSON file; a missing or broken one is a `UserError` that names it.

    Args:
        path: a regular file.
        kind: dict or list, where the file must hold such a thing.
        limit: bytes at most.
    """
    return parse_json(read_bytes(path, limit), str(path), kind)


def parse_json(text: str | bytes, where: str, kind: type | None = None, *, any_number: bool = False) -> Any:
    """The value of a JSON text; `where` names it in errors.

    Args:
        text: UTF-8, with or without a byte order mark where it is bytes.
        where: the file, and the line if it is one.
        kind: dict or list, where it must be such a thing.
        any_number: a whole number that is too long stays the text of its digits: for those who do not look at it.

    Raises:
        UserError: no JSON, not UTF-8, nested more than 64 deep, a whole number of more than 40 digits, or not a `kind`.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = (_ANY_NUMBER if any_number else _DECODER).decode(text)
        _refuse_depth(value)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise UserError(f"{where} is not valid JSON here: it is nested more than {_DEPTH} deep") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if kind is not None and not isinstance(value, kind):
        noun = {dict: "an object", list: "a list", str: "a text"}.get(kind, kind.__name__)
        raise UserError(f"{where} must hold {noun}, not {_named(value)}")
    return value


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits; {_DIGITS} are read at most")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_whole)
_ANY_NUMBER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else digits)


def _refuse_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
        if isinstance(inner, dict | list)
    ]:
        depth += 1
        if depth > _DEPTH:
            raise RecursionError


def _named(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number")


def listed_name(name: Any, where: str) -> str:
    """A file name from a manifest, which may come from anywhere: refused where it could lead out of its folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or "\\" in name or Path(name).name != name:
        raise UserError(f"{where}: {name!r:.80} is not a plain file name")
    return name


def check_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8, where a library beneath could not open it later."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!r}: the name is not UTF-8, which model files need; choose another") from None
