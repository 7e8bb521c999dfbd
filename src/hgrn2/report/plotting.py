"""How figures are drawn and saved, whatever they show: colours, axes, ticks, curves of many points.

A figure is saved twice: as a PNG file, and as SVG text whose ink and series colours are CSS variables, so that one
figure fits a light and a dark page. Series colours are from the Okabe-Ito set, told apart by colour-blind readers too.
matplotlib (extra `plot`) is imported inside functions only.
"""

import io
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hgrn2.files import atomic_path
from hgrn2.units import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours as drawn in PNG files, and the CSS variables that take their place in SVG text. Each value is used for one
# thing only, so that replacing text cannot hit another.
INK, FAINT, GRID = "#24292e", "#6a737c", "#dde1e5"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green"}
RAW = 0.25  # opacity of a curve before smoothing: faint, but there on a dark page too

WIDE, SMALL = (6.0, 3.4), (4.1, 2.6)  # inches; 72 SVG units an inch
_TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
_MAX_POINTS = 1500  # of a curve: more cannot be seen and only makes the page heavy


@dataclass(frozen=True)
class SavedFigure:
    """A figure as SVG text for a page, and its name (that of its PNG file without the ending)."""

    name: str
    svg: str


def style() -> dict[Any, Any]:
    """matplotlib settings (keys are its own literal type) for all figures."""
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same figure on every machine
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "svg.fonttype": "none",  # real text: small, searchable, in the reader's font
        "svg.hashsalt": "hgrn2",  # or the same data would give another file each time
    }


def save(figure: "Figure", folder: Path, name: str) -> SavedFigure:
    """Write `folder`/`name`.png and return the same figure as SVG text for a page."""
    with atomic_path(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")
    text = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML header, which HTML does not know
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # Coordinates only (never the text of a label): a hundredth of a unit cannot be seen.
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    # Ids are shared by all figures of a page: without a prefix one figure would use another's clip paths.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    return SavedFigure(name, svg.strip())


def new_axes(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    """A figure of one plot, made without pyplot: no window system, nothing global."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Centred moving mean over `share` of the curve, [N] -> [N], skipping NaN.

    The window grows from one point at the start: a loss falls steeply there, and a full window would flatten it.
    """
    count = len(values)
    index = np.arange(count)
    half = np.minimum(max(int(count * share / 2), 1), index // 3)
    low, high = index - half, np.minimum(index + half + 1, count)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def thin(x: np.ndarray, y: np.ndarray, points: int = _MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `points` points that draw the same line: the lowest and highest of each stretch are kept."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points // 2 + 1).astype(int)
    chosen = {0, len(x) - 1}
    for a, b in pairwise(edges):
        chosen.update((a + int(np.argmin(y[a:b])), a + int(np.argmax(y[a:b]))))
    order = sorted(chosen)
    return x[order], y[order]


def token_axis(axes: "Axes") -> None:
    axes.set_xlabel("tokens seen")
    last = axes.dataLim.x1
    axes.set_xlim(0, last * 1.02 if math.isfinite(last) and last > 0 else 1)
    axes.locator_params(axis="x", nbins=6)  # more would touch each other: 1.25M is long
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))


def tick(value: float) -> str:
    """10M rather than 10.0M, 0.002 as it is."""
    if 0 < abs(value) < 1000:
        return f"{value:g}"
    return re.sub(r"\.0+(?=\D|$)|(\.\d*?[1-9])0+(?=\D|$)", r"\1", short(value))


def log_axis(axes: "Axes") -> None:
    """Logarithmic where all values allow it, with ticks at round numbers even within one decade."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if not (math.isfinite(low) and math.isfinite(high) and low > 0):
        return
    low, high = low / 1.04, high * 1.04
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_yticks(log_ticks(low, high), minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high], evenly enough on a log axis: about four to nine of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(1 + i / 10 for i in range(90))):
        ticks = [round(step * 10.0**decade, 12) for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks[:: math.ceil(len(ticks) / 9)]
    return [float(f"{value:.6g}") for value in np.geomspace(low, high, 4)]  # too narrow for round numbers


def time_axis(axes: "Axes", tokens: np.ndarray, seconds: np.ndarray) -> None:
    """A second x axis above: the training time `seconds` [N] at which `tokens` [N] had been seen."""
    keep = np.isfinite(seconds)
    tokens, seconds = np.append(0.0, tokens[keep]), np.append(0.0, np.maximum.accumulate(seconds[keep]))
    last = float(seconds[-1])
    if last <= 0:
        return
    size, unit = next(((s, u) for s, u in _TIME_UNITS if last >= 2 * s), (1.0, "seconds"))
    step = _round_step(last / size / 5)
    ticks = np.arange(0, last / size + 1e-9, step)
    top = axes.twiny()
    top.grid(False)
    top.spines["top"].set_visible(True)
    top.set_xlim(axes.get_xlim())
    top.set_xticks(np.interp(ticks * size, seconds, tokens), [f"{tick:g}" for tick in ticks])
    top.set_xlabel(f"training time ({unit})")


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
