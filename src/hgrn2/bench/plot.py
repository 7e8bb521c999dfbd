"""The figure of cost against length, drawn from the rows of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrn2.bench.table import by_machine, name_of
from hgrn2.report import plotting
from hgrn2.rows import Row
from hgrn2.units import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (9.2, 3.9)
STYLES = (
    ("hgrn2", plotting.BLUE, "o"),
    ("fla", plotting.ORANGE, "s"),
    ("sdpa", plotting.GREEN, "^"),
)
"""Subject, colour, mark; a second code path of a model is dashed."""


def draw_sweeps(rows: Sequence[Row], folder: Path) -> list[str]:
    """Write a PNG for every machine with a sweep; returns their file names, none where matplotlib is missing."""
    groups = by_machine([row for row in rows if row.bench == "sweep"])
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    names = []
    with mpl.rc_context(plotting.style()):
        for number, group in enumerate(groups, 1):
            name = "sweep" if number == 1 else f"sweep-{number}"
            _draw(_of_one_kind(group), folder, name)
            names.append(f"{name}.png")
    return names


def _of_one_kind(rows: Sequence[Row]) -> list[Row]:
    """Those measured on the same problem as the last one, but for length and direction; attention has no lower
    bound."""
    kind = _kind(rows[-1])
    return [row for row in rows if _kind(row) == (kind if row.subject != "sdpa" else {**kind, "bound": None})]


def _kind(row: Row) -> dict[str, Any]:
    kept = {name: value for name, value in row.case.items() if name not in ("tokens", "pass")}
    return kept if row.subject != "sdpa" else {**kept, "bound": None}


def _draw(rows: Sequence[Row], folder: Path, name: str) -> None:
    from matplotlib.figure import Figure

    directions = list(dict.fromkeys(row.case["pass"] for row in rows))
    figure = Figure(figsize=SIZE, layout="constrained")
    for number, direction in enumerate(directions, 1):
        axes = figure.add_subplot(1, len(directions), number)
        _panel(axes, [row for row in rows if row.case["pass"] == direction])
        axes.set_title(direction)
    case = rows[-1].case
    told = f"{case['B x T']:,} tokens in all, {case['D']} channels in heads of {case['n']}, {case['dtype']}"
    device = rows[-1].machine.get("gpu") or rows[-1].machine.get("cpu")
    figure.suptitle(f"{told}; {device}", fontsize=9.5)
    plotting.save(figure, folder, name)


def _panel(axes: "Axes", rows: Sequence[Row]) -> None:
    lengths = sorted({row.case["tokens"] for row in rows})
    drawn: dict[str, int] = {}
    for who in dict.fromkeys((row.subject, row.backend) for row in rows):
        points = sorted((r for r in rows if (r.subject, r.backend) == who), key=lambda r: r.case["tokens"])
        colour, mark = next(((c, m) for s, c, m in STYLES if s == who[0]), (plotting.FAINT, "d"))
        line = "--" if drawn.setdefault(who[0], 0) else "-"
        drawn[who[0]] += 1
        x, y = [r.case["tokens"] for r in points], [r.median for r in points]
        axes.plot(x, y, line, color=colour, marker=mark, markersize=4, linewidth=1.6, label=name_of(points[0]))
        axes.fill_between(x, [r.low for r in points], [r.high for r in points], color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [short(length) if length >= 10_000 else f"{length:,}" for length in lengths], rotation=30)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens of a sequence")
    axes.set_ylabel("milliseconds")
    plotting.log_axis(axes)
    axes.legend()
