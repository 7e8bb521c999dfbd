"""A curve of the loss in the rows of a terminal: training as a line of dots, held-out measurements as marks on it."""

import math
from itertools import pairwise

from rich.text import Text

from hgrn2.units import short

Points = list[tuple[float, float]]
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille character: by column, from the top
_BRAILLE = 0x2800
_GUTTER = 8  # columns of the labels and their axis


def chart(train: Points, held_out: Points, *, width: int, height: int, ascii_only: bool = False) -> Text:
    """Loss over steps in `width` x `height` characters, axes and legend included; at least 24 x 4.

    On a log scale where all losses are positive: a loss falls fast and then slowly, and most of it would look flat.
    """
    points = train + held_out
    if len(points) < 2:
        return Text("the loss curve follows" + "\n" * (height - 1), style="dim")
    rows, columns = height - 2, width - _GUTTER
    axis = _Axis(points)
    grid = [[0] * columns for _ in range(rows)]
    for column, dot in _line([axis.place(x, y) for x, y in train], 2 * columns, 4 * rows):
        grid[dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
    marks = {_cell(axis.place(x, y), columns, rows) for x, y in held_out}
    labels = {0: axis.high, rows - 1: axis.low}
    if rows > 4:
        labels[rows // 2] = axis.at(1 - (rows // 2) / (rows - 1))
    text = Text(no_wrap=True)
    mark, edge = ("o", "|") if ascii_only else ("●", "┤")
    for row in range(rows):
        label = f"{labels[row]:>6.3g} {edge}" if row in labels else f"       {'|' if ascii_only else '│'}"
        text.append(label, "dim")
        for column in range(columns):
            if (column, row) in marks:
                text.append(mark, "bold yellow")
            else:
                dots = grid[row][column]
                text.append(("." if dots else " ") if ascii_only else chr(_BRAILLE + dots) if dots else " ", "cyan")
        text.append("\n")
    corner, line = ("+", "-") if ascii_only else ("└", "─")
    text.append(" " * (_GUTTER - 1) + corner + line * columns + "\n", "dim")
    return text.append_text(_legend(axis.last, width, mark, "." if ascii_only else "⠒"))


class _Axis:
    """Where steps and losses lie: both from 0 to 1, losses from the bottom."""

    def __init__(self, points: Points) -> None:
        losses = [y for _, y in points]
        self.last = max(x for x, _ in points)
        self.low, self.high = min(losses), max(losses)
        self._log = self.low > 0
        self._bottom, self._top = self._scaled(self.low), self._scaled(self.high)

    def _scaled(self, y: float) -> float:
        return math.log(y) if self._log else y

    def place(self, x: float, y: float) -> tuple[float, float]:
        span = self._top - self._bottom
        return x / self.last if self.last > 0 else 1.0, (self._scaled(y) - self._bottom) / span if span > 0 else 0.5

    def at(self, share: float) -> float:
        """The loss at this height."""
        value = self._bottom + share * (self._top - self._bottom)
        return math.exp(value) if self._log else value


def _cell(place: tuple[float, float], columns: int, rows: int) -> tuple[int, int]:
    """(column, row from the top)."""
    return min(int(place[0] * columns), columns - 1), min(int((1 - place[1]) * rows), rows - 1)


def _line(places: list[tuple[float, float]], columns: int, rows: int) -> list[tuple[int, int]]:
    """The dots of a line through the places."""
    cells = [_cell(place, columns, rows) for place in places]
    found = cells[:1]
    for (x, y), (to_x, to_y) in pairwise(cells):
        count = max(abs(to_x - x), abs(to_y - y), 1)
        found += [(x + (to_x - x) * n // count, y + (to_y - y) * n // count) for n in range(1, count + 1)]
    return found


def _legend(last: float, width: int, mark: str, dot: str) -> Text:
    left, right = " " * _GUTTER + "0", f"step {short(last) if last >= 1e6 else f'{last:,.0f}'}"
    middle = Text.assemble((dot * 2, "cyan"), (" train  ", "dim"), (mark, "bold yellow"), (" held-out", "dim"))
    gap = max(width - len(left) - len(middle) - len(right), 2)
    return Text.assemble((left, "dim"), " " * (gap // 2), middle, " " * (gap - gap // 2), (right, "dim"), no_wrap=True)
