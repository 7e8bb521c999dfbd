"""The figures of an inspection, one function each; matplotlib is imported inside functions only."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hgrn2.inspect.measure import Inspection
from hgrn2.report import plotting
from hgrn2.report.figures import LayerGates, time_scales
from hgrn2.report.plotting import GRID, WIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"
NUMBERED = 16
"""Heads of a layer up to which a cell has its number in it."""
COLUMNS = 300
"""Of a map along a text: more tokens are averaged."""
SHOWN_TOKENS = 60
"""Earlier tokens of a decomposition, the nearest ones."""
LEAST, MOST = 0.1, 1e7
"""Memory lengths in tokens that a map tells apart."""


def plans(found: Inspection) -> "dict[str, Callable[[], Figure]]":
    """What can be drawn, by name."""
    drawn: dict[str, Callable[[], Figure]] = {"time_scales": lambda: _time_scales(found)}
    if any(len(layer.memory) > 1 for layer in found.layers):
        drawn["memory"] = lambda: _by_head(found, [layer.memory for layer in found.layers], "memory length (tokens)")
    if found.tokens > 1:
        drawn |= {"gates": lambda: _gates(found), "state": lambda: _state(found), "reach": lambda: _reach(found)}
        drawn["contributions"] = lambda: _contributions(found)
    if found.difference:
        distances = [one.distance for one in found.difference]
        drawn["difference"] = lambda: _by_head(found, distances, "distance of the two states", log=False)
    return drawn


def _time_scales(found: Inspection) -> "Figure":
    return time_scales([
        LayerGates(lower_bound=layer.lower_bound, mean_log_forget=layer.mean_log_forget, layer=layer.layer)
        for layer in found.layers
    ])  # fmt: skip


def _by_head(found: Inspection, values: Sequence[np.ndarray], label: str, log: bool = True) -> "Figure":
    """Layers by heads, a cell each; layers of fewer heads leave cells empty."""
    rows, columns = len(values), max(map(len, values))
    table = np.full((rows, columns), np.nan)
    for row, one in enumerate(values):
        table[row, : len(one)] = np.clip(one, LEAST, MOST) if log else one
    figure, axes = plotting.new_axes((6.0, min(8.0, 1.3 + 0.32 * rows)))
    mesh = axes.pcolormesh(
        table, cmap=COLOURS, norm=_scale(table, log), edgecolors=GRID, linewidth=0.5, rasterized=columns > NUMBERED
    )
    axes.set_yticks(np.arange(rows) + 0.5, [str(layer.layer) for layer in found.layers])
    axes.set_xticks(np.arange(columns) + 0.5, [str(n) for n in range(columns)])
    if columns > NUMBERED:
        axes.xaxis.set_major_locator(_whole_numbers())
    axes.set_ylabel("layer")
    axes.set_xlabel("head")
    axes.grid(False)
    _colour_bar(figure, mesh, axes, label, log)
    if columns <= NUMBERED:
        _numbers(axes, table, mesh, log)
    return figure


def _gates(found: Inspection) -> "Figure":
    """Memory length at every token, one row per head, layers from the bottom up."""
    rows = np.concatenate([layer.memory_along.T for layer in found.layers])
    groups = np.array_split(np.arange(found.tokens), min(COLUMNS, found.tokens))
    # The mean of ln f over a group of tokens, as a length in tokens again.
    table = np.stack([1 / np.mean(1 / np.clip(rows[:, group], LEAST, MOST), 1) for group in groups], 1)
    figure, axes = plotting.new_axes((6.0, min(8.0, 1.6 + 0.09 * len(rows) + 0.12 * len(found.layers))))
    image = axes.imshow(
        table, cmap=COLOURS, norm=_scale(table, True), aspect="auto", origin="lower", interpolation="nearest",
        extent=(0, found.tokens, 0, len(rows)),
    )  # fmt: skip
    edges = np.cumsum([0, *(layer.memory_along.shape[1] for layer in found.layers)])
    for edge in edges[1:-1]:
        axes.axhline(edge, color="white", linewidth=1.2)
    axes.set_yticks((edges[1:] + edges[:-1]) / 2, [str(layer.layer) for layer in found.layers])
    axes.set_ylabel("layer, a row for each head")
    axes.set_xlabel("token")
    axes.grid(False)
    _colour_bar(figure, image, axes, "memory length (tokens)", True)
    return figure


def _state(found: Inspection) -> "Figure":
    """Norm and effective rank along the text, a line for each layer, means over heads."""
    from matplotlib.figure import Figure

    ranked = [layer for layer in found.layers if layer.rank is not None]
    figure = Figure(figsize=(6.0, 4.6 if ranked else 2.8), layout="constrained")
    axes = figure.subplots(2 if ranked else 1, 1, sharex=True, squeeze=False)[:, 0]
    for layer, colour in _coloured(found):
        axes[0].plot(found.after, layer.norm.mean(1), color=colour, linewidth=1.5, label=str(layer.layer))
        if layer.rank is not None:
            axes[1].plot(found.after, layer.rank.mean(1), color=colour, linewidth=1.5)
    axes[0].set_ylabel("norm of the state")
    axes[0].set_ylim(bottom=0)
    if ranked:
        size = min(layer.sizes[1] for layer in ranked)
        axes[1].set_ylabel(f"effective rank (of {size})")
        axes[1].set_ylim(bottom=0)
    axes[-1].set_xlabel("tokens read")
    axes[-1].set_xlim(0, found.tokens)
    _layer_legend(figure, axes[0])
    return figure


def _reach(found: Inspection) -> "Figure":
    """Which part of the outputs comes from tokens at most so far away."""
    figure, axes = plotting.new_axes(WIDE)
    for layer, colour in _coloured(found):
        distance = np.arange(len(layer.reach))
        axes.plot(distance + 1, 100 * np.cumsum(layer.reach), color=colour, linewidth=1.5, label=str(layer.layer))
    axes.set_xscale("log")
    axes.set_xlim(1, found.tokens)
    axes.set_ylim(0, 101)
    axes.set_xlabel("last tokens, the present one included")
    axes.set_ylabel("share of what outputs are made of (%)")
    axes.xaxis.set_major_formatter(lambda value, _: plotting.tick(value))
    _layer_legend(figure, axes)
    return figure


def _contributions(found: Inspection) -> "Figure":
    """The share of each earlier token in the outputs at one token, layer by layer."""
    from matplotlib.colors import SymLogNorm

    shares = np.stack([layer.shares for layer in found.layers])[:, -SHOWN_TOKENS:]
    names = found.names[: found.token + 1][-SHOWN_TOKENS:]
    figure, axes = plotting.new_axes((8.0, min(8.0, 1.9 + 0.3 * len(shares))))
    most = max(float(np.abs(shares).max()) * 100, 1.0)
    # Logarithmic beyond 0.1 %, or the present token would outshine all others.
    scale = SymLogNorm(linthresh=0.1, vmin=-most, vmax=most, base=10)
    mesh = axes.pcolormesh(100 * shares, cmap="PuOr", norm=scale, edgecolors=GRID, linewidth=0.3)
    long = max(map(len, names)) > 2
    axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90 if long else 0, fontsize=7 if long else 8.5)
    axes.set_yticks(np.arange(len(shares)) + 0.5, [str(layer.layer) for layer in found.layers])
    axes.tick_params(length=0)
    axes.set_ylabel("layer")
    axes.set_xlabel(f"token; the outputs are those at token {found.token}, the last one here")
    axes.grid(False)
    bar = figure.colorbar(
        mesh, ax=axes, pad=0.01, ticks=[sign * step for step in (0.1, 1, 10, 100) for sign in (-1, 1)]
    )
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.ax.yaxis.set_minor_formatter(lambda value, _: "")
    bar.set_label("share of the output (%)")
    return figure


def _coloured(found: Inspection) -> list[tuple[Any, Any]]:
    """Layers and their colours, which follow their depth."""
    from matplotlib import colormaps

    steps = np.linspace(0.2, 0.85, max(2, len(found.layers)))  # seen on a light and on a dark page
    return list(zip(found.layers, colormaps[COLOURS](steps), strict=False))


def _layer_legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    step = -(-len(labels) // 12)  # of many layers some
    figure.legend(handles[::step], labels[::step], loc="outside right upper", title="layer")


def _scale(table: np.ndarray, log: bool) -> Any:
    """Colours from the least to the largest value, never a scale of no length."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = float(np.nanmin(table)), float(np.nanmax(table))
    if not log:
        return Normalize(0, max(high, 1e-9))
    return LogNorm(low / 1.05, high * 1.05)


def _colour_bar(figure: "Figure", drawn: Any, axes: "Axes", label: str, log: bool) -> None:
    bar = figure.colorbar(drawn, ax=axes, pad=0.02)
    bar.set_label(label)
    if log:
        low, high = drawn.norm.vmin, drawn.norm.vmax
        bar.set_ticks(plotting.log_ticks(low, high)[:8], minor=False)
        bar.set_ticks([], minor=True)
        bar.ax.yaxis.set_major_formatter(lambda value, _: plotting.tick(float(f"{value:.3g}")))
        bar.ax.yaxis.set_minor_formatter(lambda value, _: "")


def _numbers(axes: "Axes", table: np.ndarray, mesh: Any, log: bool) -> None:
    """The number of each cell, dark on light colours and light on dark ones."""
    size = 8.5 if table.shape[1] <= 10 else 6.5
    for row, column in zip(*np.nonzero(np.isfinite(table)), strict=True):
        value = float(table[row, column])
        dark = float(mesh.norm(value)) > 0.55
        shown = plotting.tick(float(f"{value:.2g}" if value < 1000 else f"{value:.0f}")) if log else f"{value:.2f}"
        axes.text(column + 0.5, row + 0.5, shown, ha="center", va="center", fontsize=size,
                  color="black" if dark else "white")  # fmt: skip


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=16, integer=True)
