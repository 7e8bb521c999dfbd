"""What a classifier's report has instead of samples: accuracy during training and by class, the confusion matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hgrn2.report import page, plotting
from hgrn2.report.plotting import BLUE, FAINT, GRID, INK, WIDE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 24
"""Classes of which a figure can name each; of more the confusion matrix has no names."""
LISTED = 200
"""Classes in the table, those with the lowest accuracy first where there are more."""
CAPTIONS = {
    "loss": "Cross-entropy of an example over the whole run, on a logarithmic axis. Training loss is that of each "
    "logged step, before its update; held-out loss is measured on examples the model does not train on.",
    "accuracy": "Accuracy on held-out examples during training. The line across is what "
    "naming the commonest class of the training examples every time comes to.",
    "confusion": "Rows are the classes that the held-out examples have, columns what they were taken for, in percent "
    "of the row. A perfect classifier has a dark diagonal and nothing else.",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Classified:
    """What a classifier does on its last held-out split."""

    split: str
    classes: tuple[str, ...]
    confusion: np.ndarray
    """int64 [classes,classes]: examples of the class of the row that were taken for the class of the column."""
    baseline: float
    """Accuracy of naming the commonest class of the training examples every time."""


def plans(metrics: list[dict[str, Any]], found: Classified) -> "dict[str, Callable[[], Figure]]":
    """The figures that can be drawn, by name."""
    evals = [record for record in metrics if record["kind"] == "eval" and record.get("accuracy") is not None]
    drawn: dict[str, Callable[[], Figure]] = {"confusion": lambda: _confusion(found)}
    if evals:
        drawn["accuracy"] = lambda: _accuracy(evals, found)
    return drawn


def by_class(found: Classified) -> str:
    """Markup: a table of the classes, how many examples each has, and for what it is taken most often."""
    counts, right = found.confusion.sum(1), found.confusion.diagonal()
    shares = right / counts.clip(1)
    order = range(len(counts)) if len(counts) <= LISTED else shares.argsort(kind="stable")[:LISTED].tolist()
    rows = []
    for n in order:
        wrong = found.confusion[n].copy()
        wrong[n] = 0
        other = int(wrong.argmax())
        taken = f"{found.classes[other]} ({wrong[other] / counts[n]:.1%})" if wrong[other] else "–"
        rows.append([found.classes[n], f"{counts[n]:,}", f"{shares[n]:.1%}" if counts[n] else "–", taken])
    return page.table(["class", f"{found.split} examples", "accuracy", "taken most often for"], rows)


def _accuracy(evals: list[dict[str, Any]], found: Classified) -> "Figure":
    figure, axes = plotting.new_axes(WIDE)
    steps = [record["step"] for record in evals]
    shares = [100 * record["accuracy"] for record in evals]
    axes.plot(steps, shares, color=BLUE, linewidth=1.6, marker="o", markersize=3.5, label="held-out accuracy")
    axes.axhline(100 * found.baseline, color=FAINT, linewidth=1, linestyle="--", label="always the commonest class")
    low = min(*shares, 100 * found.baseline)
    axes.set_ylim(max(0, 10 * math.floor(low / 10 - 0.2)), 100.5)
    axes.set_xlim(0, max(steps) * 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy (%)")
    axes.legend(loc="lower right")
    return figure


def _confusion(found: Classified) -> "Figure":
    from matplotlib.colors import LinearSegmentedColormap

    count = len(found.classes)
    named = count <= NAMED
    side = min(7.0, 2.4 + 0.42 * count) if named else 6.0
    figure, axes = plotting.new_axes((side, side * 0.9))
    shares = 100 * found.confusion / found.confusion.sum(1, keepdims=True).clip(1)
    # Squares of their own rather than an image: they stay sharp, and colours fit a light and a dark page.
    colours = LinearSegmentedColormap.from_list("shares", ["#ffffff00", "#0072b3ff"])
    axes.pcolormesh(shares, cmap=colours, vmin=0, vmax=100, edgecolors=GRID if named else "none", linewidth=0.5)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if not named:
        return figure
    places = np.arange(count) + 0.5
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in map(_plain, found.classes)]
    axes.set_xticks(places, names, rotation=90 if count > 6 else 0)
    axes.set_yticks(places, names)
    for row in range(count):
        for column in range(count):
            if found.confusion[row, column]:
                value = shares[row, column]
                size = 8.5 if count <= 12 else 6
                axes.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=size, color=INK)
    return figure


def _plain(name: str) -> str:
    """A name that matplotlib draws as it is: no formula, one line."""
    return " ".join(name.split()).replace("$", r"\$")
