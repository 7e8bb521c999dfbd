"""The figure of recall against state size: larger state, more recall."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrn2.report import plotting
from hgrn2.reproduce.recall import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    "hgrn2": ("#0072b2", "o"),
    "hgrn2-conv": ("#56b4e9", "o"),
    "hgrn1": ("#009e73", "s"),
    "gla": ("#d55e00", "^"),
    "gla-conv": ("#e69f00", "^"),
    "attention": ("#24292e", "D"),
    "attention-conv": ("#6a737c", "D"),
}
LINES = ("-", "--", ":", "-.")
"""Widths from the smallest up."""
COLUMNS = 4
PANEL = (3.3, 3.0)
"""Inches of a test segment's panel."""


def draw(points: Sequence[Point], folder: Path, name: str = "recall") -> Path | None:
    """Write `folder`/`name`.png, a panel for every test segment; None where matplotlib is missing or nothing to show.

    Lines join the sizes of a model at one width; bars reach from the worst to the best seed.
    """
    if not points:
        return None
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    segments = list(points[0].accuracy)
    columns = min(COLUMNS, len(segments))
    rows = -(-len(segments) // columns)
    with mpl.rc_context(plotting.style()):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.6), layout="constrained")
        handles: dict[str, Any] = {}
        for number, segment in enumerate(segments):
            axes = figure.add_subplot(rows, columns, number + 1)
            _panel(axes, points, segment, handles)
            if number % columns == 0:
                axes.set_ylabel("share of right answers")
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(4, len(handles)))
        plotting.save(figure, folder, name)
    return folder / f"{name}.png"


def _panel(axes: "Axes", points: Sequence[Point], segment: str, handles: dict[str, Any]) -> None:
    widths = sorted({point.width for point in points})
    for model, width in dict.fromkeys((point.model, point.width) for point in points):
        own = [point for point in points if (point.model, point.width) == (model, width)]
        x = [point.state_numbers for point in own]
        seeds = [point.accuracy[segment] for point in own]
        middle = [sum(values) / len(values) for values in seeds]
        reach = [
            [m - min(v) for m, v in zip(middle, seeds, strict=True)],
            [max(v) - m for m, v in zip(middle, seeds, strict=True)],
        ]
        colour, mark = STYLES[model]
        line = LINES[widths.index(width) % len(LINES)] if len(own) > 1 else "none"
        label = model if len(widths) == 1 else f"{model}, D {width}"
        handles[label] = axes.errorbar(
            x, middle, yerr=reach, color=colour, marker=mark, markersize=5, linewidth=1.6, linestyle=line, capsize=2
        )
    length, pairs = segment.split("x")
    axes.set_title(f"{int(pairs):,} pairs in {int(length):,} tokens")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("numbers of the state")
    axes.set_ylim(-0.03, 1.03)
