"""What makes several documents of a text file: lines, empty lines, a marker between them, lines that begin them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hgrn2.settings import refuse

FORMS = (
    "none, lines, blank-lines, blank-lines:N (N of them in a row), marker:TEXT (stands between documents and is "
    "dropped), heading:REGEX (a line in which it is found begins a document)"
)


class Piece(NamedTuple):
    """A part of a document; `ends` tells that the document ends with it. The text is never empty."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Splitting:
    """How a text file becomes documents. Empty lines at both ends of a document go, except with `none`."""

    kind: Literal["none", "lines", "blank-lines", "marker", "heading"]
    pattern: str = ""
    count: int = 1


def parse_splitting(spec: str) -> Splitting:
    """The splitting that a spec names, one of `FORMS`; any other is a `UserError`."""
    kind, colon, rest = spec.partition(":")
    if kind in ("none", "lines", "blank-lines") and not colon:
        return Splitting(kind)
    if kind == "blank-lines" and rest.isascii() and rest.isdigit() and len(rest) < 7 and int(rest) > 0:
        return Splitting("blank-lines", count=int(rest))
    refuse(kind not in ("marker", "heading") or not rest, f"--split {spec}: write {FORMS}")
    if kind == "marker":
        return Splitting("marker", rest)
    try:
        re.compile(rest)
    except re.error as error:
        refuse(True, f"--split {spec}: {rest!r} is not a regular expression: {error}")
    return Splitting("heading", rest)


def split_documents(blocks: Iterator[str], how: Splitting, limit: int) -> Iterator[Piece]:
    """The documents of a text in blocks, in pieces of about `limit` characters; memory is bounded by them."""
    if how.kind == "none":
        yield from one_document(blocks, limit)
    elif how.kind == "marker":
        yield from _by_marker(blocks, how.pattern, limit)
    else:
        yield from _by_lines(blocks, how, limit)


def one_document(blocks: Iterator[str], limit: int) -> Iterator[Piece]:
    """The whole text as one document, in pieces of at most `limit` characters; every character stays."""
    rest = ""
    for block in blocks:
        rest += block
        whole = (len(rest) - 1) // limit * limit if rest else 0
        for begin in range(0, whole, limit):
            yield Piece(rest[begin : begin + limit], False)
        rest = rest[whole:]
    if rest:
        yield Piece(rest, True)


def _by_marker(blocks: Iterator[str], marker: str, limit: int) -> Iterator[Piece]:
    document, rest = _Document(limit), ""
    for block in blocks:
        *whole, rest = (rest + block).split(marker)
        for text in whole:
            yield from document.add(text)
            yield from document.end()
        sure = len(rest) - len(marker) + 1  # what comes after may be the beginning of a marker
        if sure > 0:
            yield from document.add(rest[:sure])
            rest = rest[sure:]
    yield from document.add(rest)
    yield from document.end()


def _by_lines(blocks: Iterator[str], how: Splitting, limit: int) -> Iterator[Piece]:
    begins = _beginnings(how)
    document = _Document(limit)
    for line in _lines(blocks, limit):
        if begins(line):
            yield from document.end()
        yield from document.add(line)
    yield from document.end()


def _beginnings(how: Splitting) -> Callable[[str], bool]:
    """Tells of one line after the other whether a document begins with it."""
    if how.kind == "lines":
        return lambda line: True
    if how.kind == "heading":
        found = re.compile(how.pattern).search
        return lambda line: found(line.removesuffix("\n")) is not None
    blank = 0

    def after_blank(line: str) -> bool:
        nonlocal blank
        if not line.strip():
            blank += 1
            return False
        enough, blank = blank >= how.count, 0
        return enough

    return after_blank


def _lines(blocks: Iterator[str], limit: int) -> Iterator[str]:
    """Lines with their ends; of a line longer than `limit` what has come so far, as a line."""
    rest = ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        for line in whole:
            yield line + "\n"
        if len(rest) > limit:
            yield rest
            rest = ""
    if rest:
        yield rest


class _Document:
    """A document while it is put together: without empty lines at its ends, and none at all if it is white space."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[str] = []
        self._size = 0
        self._begun = False

    def add(self, text: str) -> Iterator[Piece]:
        self._parts.append(text)
        self._size += len(text)
        if self._size > self._limit:
            text = self._joined()
            # The last character stays, since the piece that ends the document must hold something.
            sure = len(text.rstrip("\r\n")) - 1
            if sure > 0 and (self._begun or text[:sure].strip()):
                yield Piece(text[:sure], False)
                self._begun, text = True, text[sure:]
            self._parts, self._size = [text], len(text)

    def end(self) -> Iterator[Piece]:
        text = self._joined().rstrip("\r\n")
        if self._begun or text.strip():
            yield Piece(text, True)
        self._parts, self._size, self._begun = [], 0, False

    def _joined(self) -> str:
        text = "".join(self._parts)
        return text if self._begun else text.lstrip("\r\n")
