"""Models for the studies of state expansion, as options of `hgrn2.models.comparison`. No torch here.

Cells of other papers, each with a vector state; the study sets `mixer.expansion` beside it. All have the shell of
HGRN1: output gate (for lru none, as published), norm, projection, no short convolution, 4 D² weights.

    mingru      arXiv 2410.01201
    rglru       arXiv 2402.19427; its gates in two blocks each, so that they have D² weights
    lru         arXiv 2303.06349

Maps from D to n D channels for HGRN1's recurrence, all with states of n D numbers and 16 D² weights per block, mixer
and GLU together: as many as the dense maps need beside a GLU as wide as the model. The GLUs of the others are wider.

    structured-outer        the outer product of HGRN2 with heads of n: no map
    structured-none         one copy of each channel: n times less state
    structured-dense, …     `layers.maps`; groups are n
"""

from collections.abc import Callable
from typing import Any

from hgrn2.layers.config import KINDS, MixerConfig
from hgrn2.layers.kinds import COPIES, ExpansionMap

CELLS = ("mingru", "rglru", "lru")
MAPS: dict[str, ExpansionMap] = {
    "dense": "dense", "low-rank": "low_rank", "grouped": "grouped", "grouped-mixed": "grouped_mixed",
    "khatri-rao": "khatri_rao", "kronecker": "kronecker", "hadamard": "hadamard",
}  # fmt: skip
STRUCTURED = ("outer", "none", *MAPS)
"""Names of the study of maps, the chosen one first."""
BUDGET = 16
"""Weights of a block, times D²."""


def _cell(kind: str) -> dict[str, Any]:
    options = {"groups": 2} if kind == "rglru" else {}
    return {"mixer": MixerConfig(kind=kind, **options), "lower_bound": "none"}  # pyright: ignore[reportArgumentType]


def _structured(name: str, width: int) -> dict[str, Any]:
    """The mixer, and the width of the GLU that takes what is left of the budget."""
    if name == "outer":
        mixer = MixerConfig(head_size=COPIES)
    elif name == "none":
        mixer = MixerConfig(head_size=1)
    else:
        groups = COPIES if name.startswith("grouped") else 1
        mixer = MixerConfig(kind="wide_hgru1", expansion=COPIES, expansion_map=MAPS[name], groups=groups)
    left = BUDGET * width**2 - KINDS[mixer.kind].matrices(width, mixer)
    step = max(1, width // 64)  # 8 at a width of 512
    return {"mixer": mixer, "glu_width": step * round(left / (3 * width * step))}


EXPANSIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    **{kind: lambda width, kind=kind: _cell(kind) for kind in CELLS},
    **{f"structured-{name}": lambda width, name=name: _structured(name, width) for name in STRUCTURED},
}
"""Fields of the model as a function of its width."""
