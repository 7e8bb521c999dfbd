"""The pictures of a run report, drawn with matplotlib (extra `plot`), which is imported only when one is drawn.

Each picture is made twice: as a PNG file, and as SVG text whose ink and series colours are CSS variables, so that one
picture fits a light and a dark page. Series colours are from the Okabe-Ito set, told apart by colour-blind readers too.
"""

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hgrn2.errors import UserError
from hgrn2.files import atomic_path
from hgrn2.train.units import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours as drawn in PNG files, and the CSS variables that take their place in SVG text. Each value is used for one
# thing only, so that replacing text cannot hit another.
INK, FAINT, GRID = "#24292e", "#6a737c", "#dde1e5"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green"}

WIDE, SMALL = (6.6, 3.5), (4.1, 2.6)  # inches; 72 SVG units an inch
_MAX_POINTS = 1500  # a curve: more cannot be seen and only makes the page heavy
_LATE_STEPS = 40  # from so many steps on, a picture of the end of the curve shows more than the whole one
_TAU_LIMITS = (0.1, 1e7)  # tokens; float32 cannot tell longer time scales from never forgetting


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerGates:
    """Forget gates of one layer, a value for each of its D channels.

    `lower_bound` [D] is γ in [0, 1), `mean_log_forget` [D] the mean of log f (natural, at most 0) over measured tokens.
    """

    lower_bound: np.ndarray
    mean_log_forget: np.ndarray

    def __post_init__(self) -> None:
        bound, log_forget = np.asarray(self.lower_bound), np.asarray(self.mean_log_forget)
        if bound.ndim != 1 or bound.shape != log_forget.shape or bound.size == 0:
            raise UserError(f"gates need two vectors of one length, not {bound.shape} and {log_forget.shape}")

    def time_scales(self) -> np.ndarray:
        """τ = -1 / mean log f in tokens, [D]: the time in which a channel fades to 1/e of what it held."""
        return _time_scale(np.asarray(self.mean_log_forget, np.float64))

    def guaranteed(self) -> np.ndarray:
        """-1 / log γ in tokens, [D]: no input makes the channel fade faster; 0 where γ = 0 guarantees nothing."""
        with np.errstate(divide="ignore"):
            return _time_scale(np.log(np.asarray(self.lower_bound, np.float64)))


def _time_scale(log_forget: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.minimum(np.where(log_forget < 0, -1.0 / log_forget, np.inf), _TAU_LIMITS[1])


@dataclass(frozen=True)
class Picture:
    """A picture as SVG text for a page, and its name (that of its PNG file without the ending)."""

    name: str
    svg: str


def draw(folder: Path, metrics: list[dict[str, Any]], gates: list[LayerGates] | None) -> dict[str, Picture]:
    """Draw what the data allow into `folder`/NAME.png and return the pictures by name.

    Raises ImportError where matplotlib is missing.
    """
    import matplotlib

    steps = [record for record in metrics if record["kind"] == "step"]
    evals = [record for record in metrics if record["kind"] == "eval"]
    plans: dict[str, Callable[[], Figure]] = {}
    if steps or evals:
        plans["loss"] = lambda: _loss(steps, evals)
    if len(steps) >= _LATE_STEPS:
        plans["late_loss"] = lambda: _late_loss(steps, evals)
    if steps:
        plans["learning_rate"] = lambda: _small(steps, "lr", "learning rate", GREEN)
        plans["gradient_norm"] = lambda: _small(steps, "grad_norm", "gradient norm", ORANGE, log=True)
        plans["speed"] = lambda: _small(steps, "tokens_per_s", "tokens per second", BLUE)
    if gates:
        plans["gates"] = lambda: _gates(gates)
    with matplotlib.rc_context(_style()):
        return {name: _save(plan(), folder, name) for name, plan in plans.items()}


def _style() -> dict[str, Any]:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same picture on every machine
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


def _save(figure: "Figure", folder: Path, name: str) -> Picture:
    with atomic_path(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")
    text = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML header, which HTML does not know
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(\.\d\d)\d+", r"\1", svg)  # a hundredth of a unit cannot be seen
    # Ids are shared by all pictures of a page: without a prefix one picture would use another's clip paths.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    return Picture(name, svg.strip())


@contextlib.contextmanager
def _axes(size: tuple[float, float]) -> Iterator["tuple[Figure, Axes]"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure, figure.add_subplot()


def _column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """One field of all records in float64, NaN where it is null."""
    return np.array([math.nan if record[name] is None else record[name] for record in records], np.float64)


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
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        chosen.update((a + int(np.argmin(y[a:b])), a + int(np.argmax(y[a:b]))))
    order = sorted(chosen)
    return x[order], y[order]


def _loss(steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> "Figure":
    """The whole curve, logarithmic so that the end can be seen beside the fall at the start; time on a second axis."""
    with _axes(WIDE) as (figure, axes):
        _loss_lines(axes, steps, evals)
        _log_axis(axes)
        _time_axis(axes, steps or evals)
        if axes.lines:
            axes.legend(loc="upper right")
    return figure


def _late_loss(steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> "Figure":
    """The last three quarters by themselves, where runs differ."""
    start = steps[-1]["tokens"] / 4
    with _axes(SMALL) as (figure, axes):
        _loss_lines(axes, [r for r in steps if r["tokens"] >= start], [r for r in evals if r["tokens"] >= start])
        axes.set_xlim(left=start)
    return figure


def _loss_lines(axes: "Axes", steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> None:
    if steps:
        tokens, loss = _column(steps, "tokens"), _column(steps, "loss")
        axes.plot(*thin(tokens, loss), color=BLUE, alpha=0.25, linewidth=0.7, label="training, each step")
        axes.plot(*thin(tokens, smooth(loss)), color=BLUE, linewidth=1.6, label="training, smoothed")
    if evals:
        x, y = _column(evals, "tokens"), _column(evals, "loss")
        axes.plot(x, y, "o-", color=ORANGE, markersize=4, linewidth=0.8, label="held-out")
    axes.set_ylabel("loss (nats per token)")
    _token_axis(axes)


def _small(steps: list[dict[str, Any]], field: str, label: str, colour: str, log: bool = False) -> "Figure":
    with _axes(SMALL) as (figure, axes):
        tokens, values = _column(steps, "tokens"), _column(steps, field)
        if field == "lr":
            axes.plot(*thin(tokens, values), color=colour, linewidth=1.6)
        else:
            axes.plot(*thin(tokens, values), color=colour, alpha=0.25, linewidth=0.7)
            axes.plot(*thin(tokens, smooth(values)), color=colour, linewidth=1.6)
        axes.set_ylabel(label)
        _token_axis(axes)
        if log:
            _log_axis(axes)
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
    return figure


def _token_axis(axes: "Axes") -> None:
    axes.set_xlabel("tokens seen")
    last = axes.dataLim.x1
    axes.set_xlim(0, last * 1.02 if math.isfinite(last) and last > 0 else 1)
    axes.xaxis.set_major_formatter(lambda value, _: _tick(value))


def _tick(value: float) -> str:
    """10M rather than 10.0M, 0.002 as it is."""
    if 0 < abs(value) < 1000:
        return f"{value:g}"
    return re.sub(r"\.0+(?=\D|$)|(\.\d*?[1-9])0+(?=\D|$)", r"\1", short(value))


def _log_axis(axes: "Axes") -> None:
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
            return ticks[:: max(1, len(ticks) // 8)]
    return [float(f"{tick:.3g}") for tick in np.geomspace(low, high, 4)]


def _time_axis(axes: "Axes", records: list[dict[str, Any]]) -> None:
    """A second x axis above: the training time at which so many tokens had been seen."""
    tokens, seconds = _column(records, "tokens"), _column(records, "elapsed_s")
    keep = np.isfinite(seconds)
    tokens, seconds = np.append(0.0, tokens[keep]), np.append(0.0, np.maximum.accumulate(seconds[keep]))
    last = float(seconds[-1])
    if last <= 0:
        return
    size, unit = next(
        (s, u) for s, u in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (0.0, "seconds")) if last >= 2 * s
    )
    size = size or 1.0
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


def _gates(gates: list[LayerGates]) -> "Figure":
    """Half violins by layer: to the right the time scales measured, to the left those that the bound guarantees."""
    with _axes(WIDE) as (figure, axes):
        for layer, gate in enumerate(gates):
            sides = ((1, gate.time_scales(), BLUE), (-1, gate.guaranteed(), ORANGE))
            for side, scales, colour in sides:
                scales = scales[scales > 0]
                if scales.size:
                    _half_violin(axes, layer, side, np.clip(scales, *_TAU_LIMITS), colour)
        axes.set_yscale("log")
        axes.set_xlim(-0.6, len(gates) - 0.4)
        axes.set_xlabel("layer (0 is next to the embedding)")
        axes.set_ylabel("time scale τ (tokens)")
        axes.xaxis.set_major_locator(_integer_locator())
        axes.grid(False, axis="x")
        _log_axis(axes)
        _gate_legend(figure)
    return figure


def _integer_locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=16, integer=True)


def _half_violin(axes: "Axes", x: float, side: int, scales: np.ndarray, colour: str) -> None:
    """Density of log τ on one side of x, with a bar over the middle half of the channels and a dot at their median."""
    logs = np.log(scales)
    # Silverman's rule, with a floor: all channels alike (a fresh model) must not become a hair.
    width = max(0.9 * float(np.std(logs)) * logs.size**-0.2, 0.03)
    grid = np.linspace(logs.min() - 2 * width, logs.max() + 2 * width, 60)
    density = np.exp(-0.5 * ((grid[:, None] - logs[None, :]) / width) ** 2).sum(axis=1)
    edge = x + side * 0.42 * density / density.max()
    axes.fill_betweenx(np.exp(grid), x, edge, color=colour, alpha=0.35, linewidth=0)
    low, middle, high = np.exp(np.quantile(logs, (0.25, 0.5, 0.75)))
    axes.plot([x + side * 0.05] * 2, [low, high], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([x + side * 0.05], [middle], "o", color=colour, markersize=4)


def _gate_legend(figure: "Figure") -> None:
    from matplotlib.patches import Patch

    left = Patch(facecolor=ORANGE, alpha=0.6, label="guaranteed by the lower bound")
    right = Patch(facecolor=BLUE, alpha=0.6, label="measured on text")
    figure.legend(handles=[left, right], loc="outside upper left", ncols=2)
