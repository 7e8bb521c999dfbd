"""Text for people and programs on standard output, whatever its width, encoding and state.

Tables never cut a number: columns of text fold, and where even that is too wide each row becomes a few lines. Names of
files and classes are printed as they are, never read as markup. What the encoding lacks is replaced, never an error.
"""

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

    Cell = str | Text
TEXT_WIDTH = 8  # columns that a folded column of text has at least


class Columns:
    """A table for rich whose numbers are never cut.

    Args:
        head: names of the columns.
        rows: cells, as text or rich's Text; a str is never read as markup.
        text: places of the columns that hold text: on the left, and folded where the terminal is narrow. The others
            are on the right and whole.
        title: above it.
        caption: below it.
        frame: lines around it.
    """

    def __init__(
        self,
        head: Sequence[str],
        rows: "Sequence[Sequence[Cell]]" = (),
        *,
        text: Sequence[int] = (0,),
        title: str = "",
        caption: str = "",
        frame: bool = True,
    ) -> None:
        self.head, self.rows, self.text = head, [list(row) for row in rows], set(text)
        self.title, self.caption, self.frame, self.gap = title, caption, frame, 2

    def add(self, *cells: "Cell") -> None:
        """One more row."""
        self.rows.append(list(cells))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        widths = self._widths(options.max_width)
        if widths is None and not self.frame:
            self.gap = 1
            widths = self._widths(options.max_width)
        if widths is not None:
            yield self._table(widths)
            return
        if self.title:
            yield Text(self.title, style="italic")
        for row in self.rows:
            for place, (name, cell) in enumerate(zip(self.head, row, strict=True)):
                line = Text.assemble((f"{'' if place == 0 else '  '}{name}: " if name else "", "dim"), cell)
                line.no_wrap, line.overflow = False, "fold"
                if str(cell):
                    yield line
        if self.caption:
            yield Text(self.caption, style="dim italic")

    def _widths(self, most: int) -> list[int] | None:
        """Of each column; None where it does not fit even with its text folded and its heads on several lines."""
        between = 3 * len(self.head) + 1 if self.frame else self.gap * len(self.head)
        names = [_longest([name]) for name in self.head]
        words = [_longest(name.split()) for name in self.head]
        cells = [_longest([str(row[place]) for row in self.rows]) for place in range(len(self.head))]
        for heads in (names, words):
            widths = [max(pair) for pair in zip(heads, cells, strict=True)]
            if sum(widths) + between <= most:
                return widths
        least = [min(w, max(TEXT_WIDTH, h)) if n in self.text else w
                 for n, (w, h) in enumerate(zip(widths, words, strict=True))]  # fmt: skip
        spare = most - between - sum(least)
        if spare < 0:
            return None
        missing = [w - low for w, low in zip(widths, least, strict=True)]
        while spare and any(missing):
            place = missing.index(max(missing))
            least[place] += 1
            missing[place] -= 1
            spare -= 1
        return least

    def _table(self, widths: list[int]) -> Any:
        from rich.box import HEAVY_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(self.title) if self.title else None, caption=Text(self.caption) if self.caption else None,
            caption_justify="left", box=HEAVY_HEAD if self.frame else None,
            padding=(0, 1) if self.frame else (0, self.gap, 0, 0),
        )  # fmt: skip
        for place, (name, width) in enumerate(zip(self.head, widths, strict=True)):
            justify = "left" if place in self.text else "right"
            table.add_column(Text(name), justify=justify, width=width, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        return table


def _longest(texts: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)


def show(*parts: Any) -> None:
    """Print tables, and texts as they are, to standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(part, soft_wrap=isinstance(part, Text))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as JSON: null for what is not a finite number, escapes where the encoding has no such character."""
    plain = finite(value)
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(plain, indent=indent)
    print(text)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them, at any depth."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_STREAMS = (("stdin", "r", ""), ("stdout", "w", "replace"), ("stderr", "w", "backslashreplace"))


@contextlib.contextmanager
def prepared_streams() -> Iterator[None]:
    """Standard streams that every program part can use while the context lasts.

    A closed one leads nowhere (and its number is taken, lest the next file that is opened gets it), and a character
    that the encoding lacks becomes `?` on standard output and an escape on standard error.
    """
    with contextlib.ExitStack() as stack:
        for name, mode, errors in _STREAMS:
            stream = getattr(sys, name)
            if stream is None:
                opened = stack.enter_context(open(os.devnull, mode, encoding="utf-8"))
                setattr(sys, name, opened)
                stack.callback(setattr, sys, name, None)
            elif errors and isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
                stack.callback(_restore, stream, stream.errors)
                stream.reconfigure(errors=errors)
        yield


def _restore(stream: io.TextIOWrapper, errors: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the reader left, or the stream was closed meanwhile
        stream.reconfigure(errors=errors)


def abandon_stdout() -> None:
    """Standard output cannot be written any more: what is still to come, at exit too, leads nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def stdout_error() -> OSError | None:
    """Why standard output cannot be written, where that is so; where it can be, a line end is written."""
    try:
        sys.stdout.flush()
        os.write(
            sys.stdout.fileno(), b"\n"
        )  # what could not be written is lost, and a second flush finds nothing to do
    except (AttributeError, ValueError):  # not a file of the system
        return None
    except OSError as error:
        return error
    return None
