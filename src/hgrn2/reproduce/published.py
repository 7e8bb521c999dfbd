"""What was published: accuracies and settings of training, each with its source. The only place that has them."""

from dataclasses import dataclass

LRA_FIGURE = "figures/lra.png of OpenNLPLab/HGRN2"
LRA_SCRIPT = "run_lra.py of OpenNLPLab/HGRN2"
METALA = "table 6 of MetaLA (arXiv 2411.10741)"
CLAIM = "larger state, more recall: a figure of the HGRN2 paper, whose numbers we do not have"


@dataclass(frozen=True)
class Published:
    """A result that somebody else reports."""

    per_cent: float
    """Accuracy on the published test set."""
    source: str


def _lra(transformer: float | None, hgrn1: float, hgrn2: float) -> dict[str, Published]:
    found = {"transformer": transformer, "hgrn1": hgrn1, "hgrn2": hgrn2}
    return {model: Published(value, LRA_FIGURE) for model, value in found.items() if value is not None}


RESULTS: dict[str, dict[str, Published]] = {
    "listops": _lra(38.37, 59.95, 60.52),
    "text": _lra(61.95, 88.14, 88.97),
    "retrieval": _lra(80.69, 94.23, 95.07),
    "image": _lra(40.57, 88.69, 89.33),
    "pathfinder": _lra(65.26, 92.92, 93.95),
    "pathx": _lra(None, 97.50, 98.12),  # a Transformer does not learn it
    "imagenet": {
        "transformer": Published(72.20, METALA),
        "hgrn1": Published(74.40, METALA),
        # HGRN2's own number could not be confirmed by a text that could be read: none is stated.
    },
}
"""By task and model. CIFAR-10 and Fashion-MNIST as such were not published for these models."""


@dataclass(frozen=True)
class Recipe:
    """A row of HGRN2's published Long Range Arena script; n is the head size, `positions` its encoder."""

    layers: int
    width: int
    n: int
    glu: int
    """Hidden width of the GLU as a multiple of the width."""
    batch: int
    norm: str
    lr: float
    dropout: float
    warmup: int
    epochs: int
    positions: bool
    clip: float
    direction: str
    weight_decay: float = 0.0


RECIPES: dict[str, Recipe] = {
    "listops": Recipe(5, 64, 4, 1, 128, "batch", 5e-4, 0.0, 5_000, 50, True, 0, "bidirectional"),
    "text": Recipe(4, 128, 8, 1, 64, "layer", 5e-3, 0.1, 10_000, 40, False, 0, "bidirectional"),
    "retrieval": Recipe(2, 256, 2, 2, 128, "batch", 5e-3, 0.0, 312, 20, True, 1, "bidirectional"),
    "image": Recipe(6, 512, 2, 1, 64, "batch", 3e-3, 0.0, 30_000, 75, True, 0, "parallel_2d"),
    "pathfinder": Recipe(6, 128, 2, 1, 128, "batch", 2e-3, 0.0, 50_000, 100, False, 0, "parallel_2d"),
    "pathx": Recipe(6, 32, 1, 1, 256, "batch", 7.5e-4, 0.0, 150_000, 200, True, 1, "series_2d"),
}
"""By task. Batches are those of all devices together; its synchronised batch norm counts as batch norm here."""
