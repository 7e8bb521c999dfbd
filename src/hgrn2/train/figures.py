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
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids are shared by all pictures of a page: without a prefix one picture would use another's clip paths.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    return Picture(name, svg.strip())
