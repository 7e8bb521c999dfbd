"""The figures of a run report: curves of the run, and the time scales of the forget gates by layer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hgrn2.errors import UserError
from hgrn2.report import plotting
from hgrn2.report.plotting import BLUE, GREEN, ORANGE, RAW, SMALL, WIDE, SavedFigure, smooth, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MORE = (GREEN, "#cc79a7", "#56b4e9", "#e69f00")  # of further held-out texts; the table has those beyond
_LATE_STEPS = 4  # from so many records on, the end of the curve by itself shows more than the whole one
_TAU_LIMITS = (0.1, 1e7)  # tokens; float32 cannot tell longer time scales from never forgetting


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerGates:
    """Forget gates of one layer, a value for each of its D channels.

    `lower_bound` [D] is γ in [0, 1), `mean_log_forget` [D] the mean of log f (natural, at most 0) over measured tokens.
    """

    lower_bound: np.ndarray
    mean_log_forget: np.ndarray
    layer: int
    """From 0; in a stack of several kinds of mixers some layers have no gates."""

    def __post_init__(self) -> None:
        lower_bound, log_forget = np.asarray(self.lower_bound), np.asarray(self.mean_log_forget)
        if lower_bound.ndim != 1 or lower_bound.shape != log_forget.shape or lower_bound.size == 0:
            raise UserError(f"gates need two vectors of one length, not {lower_bound.shape} and {log_forget.shape}")

    def time_scales(self) -> np.ndarray:
        """τ = -1 / mean log f in tokens, [D]: the time in which a channel fades to 1/e of what it held."""
        return _time_scale(np.asarray(self.mean_log_forget, np.float64))

    def guaranteed(self) -> np.ndarray:
        """-1 / log γ in tokens, [D]: no input makes the channel fade faster; 0 where γ = 0 guarantees nothing."""
        with np.errstate(divide="ignore"):
            return _time_scale(np.log(np.asarray(self.lower_bound, np.float64)))


def layer_gates(statistics: Sequence[Any]) -> list[LayerGates] | None:
    """The gates of a report from `hgrn2.models.gates.gate_statistics`; None for mixers that have none."""
    found = [
        LayerGates(lower_bound=one.lower_bound.numpy(), mean_log_forget=one.mean_log_forget.numpy(), layer=one.layer)
        for one in statistics
    ]
    return found or None


def _time_scale(log_forget: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.minimum(np.where(log_forget < 0, -1.0 / log_forget, np.inf), _TAU_LIMITS[1])


def draw(
    folder: Path, metrics: list[dict[str, Any]], gates: list[LayerGates] | None,
    more: "dict[str, Callable[[], Figure]] | None" = None,
) -> dict[str, SavedFigure]:  # fmt: skip
    """Draw what the data allow into `folder`/NAME.png and return the figures by name; `more` are drawn besides.

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
    if any(record.get("mfu") is not None for record in steps):
        plans["mfu"] = lambda: _small(steps, "mfu", "share of the measured matrix rate", BLUE)
    if gates:
        plans["gates"] = lambda: time_scales(gates)
    plans |= more or {}
    with matplotlib.rc_context(plotting.style()):
        return {name: plotting.save(plan(), folder, name) for name, plan in plans.items()}


def _column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """One field of all records in float64, NaN where it is null."""
    return np.array([math.nan if record.get(name) is None else record[name] for record in records], np.float64)


def _loss(steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> "Figure":
    """The whole curve, logarithmic so that the end can be seen beside the fall at the start; time on a second axis."""
    figure, axes = plotting.new_axes(WIDE)
    _loss_lines(axes, steps, evals)
    plotting.log_axis(axes)
    records = steps or evals
    plotting.time_axis(axes, _column(records, "tokens"), _column(records, "elapsed_s"))
    if axes.lines:
        axes.legend(loc="upper right")
    return figure


def _late_loss(steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> "Figure":
    """The last three quarters by themselves, where runs differ."""
    start = steps[-1]["tokens"] / 4
    figure, axes = plotting.new_axes(SMALL)
    _loss_lines(axes, steps, evals, start)
    axes.set_xlim(left=start)
    return figure


def _loss_lines(axes: "Axes", steps: list[dict[str, Any]], evals: list[dict[str, Any]], start: float = 0) -> None:
    """Loss from `start` tokens on; it is smoothed before it is cut, or the cut would look like a noisy beginning."""
    if steps:
        tokens, loss = _column(steps, "tokens"), _column(steps, "loss")
        late, smoothed = tokens >= start, smooth(loss)
        axes.plot(*thin(tokens[late], loss[late]), color=BLUE, alpha=RAW, linewidth=0.7, label="training, logged steps")
        axes.plot(*thin(tokens[late], smoothed[late]), color=BLUE, linewidth=1.6, label="training, smoothed")
    if evals:
        tokens, loss = _column(evals, "tokens"), _column(evals, "loss")
        late = tokens >= start
        axes.plot(tokens[late], loss[late], "o-", color=ORANGE, markersize=4, linewidth=0.8, label="held-out")
        names = dict.fromkeys(name for record in evals for name in record.get("corpora", {}))
        for name, colour in zip(names, MORE, strict=False):
            further = [record.get("corpora", {}).get(name) for record in evals]
            values = np.array([math.nan if loss is None else loss for loss in further], np.float64)
            axes.plot(tokens[late], values[late], "s--", color=colour, markersize=3, linewidth=0.8, label=name)
    axes.set_ylabel("loss (nats per token)")
    plotting.token_axis(axes)


def _small(steps: list[dict[str, Any]], field: str, label: str, colour: str, log: bool = False) -> "Figure":
    figure, axes = plotting.new_axes(SMALL)
    tokens, values = _column(steps, "tokens"), _column(steps, field)
    if field == "lr":
        axes.plot(*thin(tokens, values), color=colour, linewidth=1.6)
    else:
        axes.plot(*thin(tokens, values), color=colour, alpha=RAW, linewidth=0.7)
        axes.plot(*thin(tokens, smooth(values)), color=colour, linewidth=1.6)
    axes.set_ylabel(label)
    plotting.token_axis(axes)
    if log:
        plotting.log_axis(axes)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: plotting.tick(value))
    return figure


def time_scales(gates: list[LayerGates]) -> "Figure":
    """Half violins by layer: to the right the time scales measured, to the left those that the lower bound
    guarantees."""
    figure, axes = plotting.new_axes(WIDE)
    for gate in gates:
        sides = ((1, gate.time_scales(), BLUE), (-1, gate.guaranteed(), ORANGE))
        for side, scales, colour in sides:
            scales = scales[scales > 0]
            if scales.size:
                _half_violin(axes, gate.layer, side, np.clip(scales, *_TAU_LIMITS), colour)
    axes.set_yscale("log")
    axes.set_xlim(-0.6, gates[-1].layer + 0.6)
    axes.set_xlabel("layer (0 is next to the embedding)")
    axes.set_ylabel("time scale τ (tokens)")
    axes.xaxis.set_major_locator(_integer_locator())
    axes.grid(False, axis="x")
    plotting.log_axis(axes)
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
