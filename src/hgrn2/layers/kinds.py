"""What each kind of token mixer is, needs and offers, as data: settings, counts and docs/mixers.md read it. No torch.

Sizes are those of one mixer of width D with heads of n channels, biases, norms and the short convolution left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MixerKind = Literal["hgru2", "hgru1", "hgru1_real", "gla", "attention"]
Direction = Literal["causal", "bidirectional", "parallel_2d", "series_2d"]
GATE_RANK = 16
"""Width between the two matrices of gla's forget gate, as published."""

_ALL: tuple[Direction, ...] = ("causal", "bidirectional", "parallel_2d", "series_2d")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of mixer."""

    meaning: str
    """What it is, in a line."""
    made_by: str
    """Module and class of the mixer, which meets `hgrn2.layers.mixer.Mixer`."""
    offers: tuple[str, ...]
    """Which of the settings in OPTIONAL it has."""
    heads: bool
    """The width is cut into heads of `head_size`; else `head_size` is ignored."""
    bounds: bool
    """The forget gate has lower bounds; else `lower_bound` must be none."""
    gates: bool
    """There are forget gates to look at: the report of a run shows their time scales."""
    norm: bool
    """The output has a norm (`norm`); else that setting is ignored."""
    directions: tuple[Direction, ...]
    """Directions that are offered."""
    grows: bool = False
    """The state holds every token that was read, and grows with the text."""
    narrow_states: bool = True
    """States may be kept in bfloat16 while tokens are generated."""
    tokens: str = "D n"
    """Numbers of the state in words."""
    matrices: int = 4
    """Projections in and out: so many times D² weights."""
    biases: int = 4
    """Their biases, times D."""
    scanned: int = 3
    """Projections, times D², that a further scan of its own has."""
    thin: int = 0
    """Weights of thin matrices of gates, times D."""
    vectors: int = 0
    """Other weights, times D: phases, biases of gates."""
    state: Callable[[int, int, int], int] = lambda width, n, tokens: width * n
    """Real numbers of one sequence's state, as a function of D, n and the tokens that were read."""
    scan: Callable[[int, int, int], int] = lambda width, n, tokens: 5 * width * n
    """Floating-point operations of the recurrence for one token, likewise."""


OPTIONAL: dict[str, object] = {
    "conv_width": 0, "input_activation": "none", "scale_scores": False, "output_gate": "none", "norm_first": True,
    "rotary": True, "window": 0, "separate_scans": False, "count_once": False, "local_width": 0,
}  # fmt: skip
"""Settings that not every kind has, and the values that leave them out."""
_SCANS = ("separate_scans", "count_once", "local_width")

KINDS: dict[MixerKind, Kind] = {
    "hgru2": Kind(
        meaning="HGRN2: matrix state by outer product, key tied to the gate", made_by="hgrn2.layers.hgru2:HGRU2",
        offers=("conv_width", "input_activation", "scale_scores", "output_gate", *_SCANS),
        heads=True, bounds=True, gates=True, norm=True, directions=_ALL,
    ),
    "hgru1": Kind(
        meaning="HGRN1: complex vector state", made_by="hgrn2.layers.hgru1:HGRU1",
        offers=("input_activation", "norm_first", *_SCANS), heads=False, bounds=True, gates=True, norm=True,
        directions=_ALL, narrow_states=False, tokens="2 D", matrices=7, biases=6, vectors=1,
        state=lambda width, n, tokens: 2 * width, scan=lambda width, n, tokens: 10 * width,
    ),
    "hgru1_real": Kind(
        meaning="HGRN1 without phases: real vector state", made_by="hgrn2.layers.hgru1:HGRU1",
        offers=("input_activation", "norm_first", *_SCANS), heads=False, bounds=True, gates=True, norm=True,
        directions=_ALL, narrow_states=False, tokens="D", scanned=2,
        state=lambda width, n, tokens: width, scan=lambda width, n, tokens: 3 * width,
    ),
    "gla": Kind(
        meaning="gated linear attention: matrix state, key of its own", made_by="hgrn2.layers.gla:GLA",
        offers=("conv_width", "scale_scores"), heads=True, bounds=False, gates=True, norm=True,
        directions=("causal",), matrices=5, biases=5, thin=2 * GATE_RANK, vectors=1,
    ),
    "attention": Kind(
        meaning="softmax attention over the keys so far, or over the whole sequence",
        made_by="hgrn2.layers.attention:Attention", offers=("conv_width", "rotary", "window"),
        heads=True, bounds=False, gates=False, norm=False,
        directions=("causal", "bidirectional"), grows=True, tokens="2 D S",
        state=lambda width, n, tokens: 2 * width * tokens, scan=lambda width, n, tokens: 4 * width * tokens,
    ),
}  # fmt: skip
