"""What each kind of token mixer is, needs and offers, as data: settings, counts and docs/mixers.md read it. No torch.

Sizes are those of one mixer, as functions of its width D and its settings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

MixerKind = Literal[
    "hgru2", "hgru1", "hgru1_real", "wide_hgru1", "gla", "mamba", "mamba2", "mingru", "rglru", "lru", "attention"
]  # fmt: skip
ExpansionMap = Literal["dense", "low_rank", "grouped", "grouped_mixed", "khatri_rao", "kronecker", "hadamard"]
Direction = Literal["causal", "bidirectional", "parallel_2d", "series_2d"]
GATE_RANK = 16
"""Width between the two matrices of gla's forget gate, as published."""

Size = Callable[[int, Any], int]
"""A number as a function of the width D and the mixer's settings, a `MixerConfig`."""
Function = Callable[[int, Any, int], int]
"""The same, and of a number of tokens."""
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
    lower_bounds: bool
    """The forget gate has lower bounds; else `lower_bound` must be none."""
    gates: bool
    """There are forget gates to look at: the report of a run shows their time scales."""
    norm: bool
    """The output has a norm (`norm`); else that setting is ignored."""
    directions: tuple[Direction, ...]
    """Directions that are offered."""
    grows: bool = False
    """The state holds every token that was read, and grows with the text."""
    alone: bool = False
    """Blocks may consist of it alone, without a gated linear unit, as published."""
    bare: bool = False
    """The norm of the output may be left out, as published: `norm` none."""
    narrow_states: bool = True
    """States may be kept in bfloat16 while tokens are generated."""
    tokens: str = "D n"
    """Numbers of the state in words."""
    matrices: Size = lambda width, mixer: 4 * width**2
    """Weights of all its matrices, thin ones of gates among them."""
    biases: Size = lambda width, mixer: 4 * width
    """Biases of the projections in and out, where `bias` asks for them."""
    scanned: int = 3
    """Projections, times D², that a further scan of its own has."""
    vectors: Size = lambda width, mixer: 0
    """Other weights: phases, biases of gates, norms of their own."""
    normed: Size = lambda width, mixer: width
    """Width of the output's norm."""
    convolved: Size = lambda width, mixer: 3 * width
    """Channels of the short convolution."""
    state: Function = lambda width, mixer, tokens: width * mixer.head_size
    """Real numbers of one sequence's state after so many tokens."""
    scan: Function = lambda width, mixer, tokens: 5 * width * mixer.head_size
    """Floating-point operations of the recurrence for one token, which sees so many."""


COPIES = 4
"""Copies of each channel in wide_hgru1 where none are named, as in the paper's comparison of maps."""


def copies(mixer: Any) -> int:
    """n of wide_hgru1."""
    return mixer.expansion or COPIES


def rank_of(width: int, count: int) -> int:
    """Width between the two matrices of a map of low rank, which then have about D² weights."""
    return max(1, width // (count + 1))


def sides(width: int) -> tuple[int, int]:
    """a and b of a Kronecker product on a b = D channels: a is the largest divisor of D up to its root."""
    side = next(side for side in range(math.isqrt(width), 0, -1) if width % side == 0)
    return side, width // side


def _map_weights(width: int, mixer: Any) -> int:
    """Of one of the maps of wide_hgru1."""
    n, groups, (a, b) = copies(mixer), mixer.groups, sides(width)
    return {
        "dense": n * width**2, "low_rank": rank_of(width, n) * width * (1 + n), "grouped": n * width**2 // groups,
        "grouped_mixed": n * width**2 // groups + groups**2, "khatri_rao": width**2 + n * width,
        "kronecker": n * a**2 + b**2, "hadamard": width**2 + n * width,
    }[mixer.expansion_map]  # fmt: skip


def _map_products(width: int, mixer: Any) -> int:
    """Multiplications of one of them for a token beyond one for each weight: factors that are used several times."""
    n, (a, b) = copies(mixer), sides(width)
    whole = {"khatri_rao": n * width * (width + 1), "kronecker": width * (b + n * a)}
    left = {"grouped_mixed": n * width * mixer.groups - mixer.groups**2}
    name = mixer.expansion_map
    return whole[name] - _map_weights(width, mixer) if name in whole else left.get(name, 0)


def _states(width: int, mixer: Any) -> int:
    """Numbers of the state of mingru, rglru and lru, complex ones once."""
    return width * max(1, mixer.expansion)


def _cell_scan(width: int, mixer: Any) -> int:
    return (5 if mixer.expansion else 3) * _states(width, mixer)


def key_width(width: int, mixer: Any) -> int:
    """Key channels of all heads of gla."""
    return width // mixer.head_size * (mixer.key_size or mixer.head_size)


def inner_width(width: int, mixer: Any) -> int:
    """E, the channels inside of mamba and mamba2."""
    return width * mixer.expand


def states_of(mixer: Any) -> int:
    """N of mamba and mamba2."""
    return mixer.state_size or {"mamba": 16, "mamba2": 128}[mixer.kind]


def step_rank(width: int) -> int:
    """Width between the two matrices of mamba's step sizes, as published: D / 16."""
    return -(-width // 16)


def _mamba_matrices(width: int, mixer: Any) -> int:
    inner, rank = inner_width(width, mixer), step_rank(width)
    return inner * (3 * width + rank + 2 * states_of(mixer) + rank)


def _mamba_vectors(width: int, mixer: Any) -> int:
    """Biases of the steps, rates of decay, the way past the state, biases of the convolution."""
    return inner_width(width, mixer) * (2 + states_of(mixer) + (mixer.conv_width > 0))


def _mamba2_in(width: int, mixer: Any) -> int:
    return inner_width(width, mixer) + _mamba2_convolved(width, mixer) + _mamba2_heads(width, mixer)


def _mamba2_convolved(width: int, mixer: Any) -> int:
    return inner_width(width, mixer) + 2 * mixer.groups * states_of(mixer)


def _mamba2_heads(width: int, mixer: Any) -> int:
    return inner_width(width, mixer) // mixer.head_size


def _mamba2_vectors(width: int, mixer: Any) -> int:
    taps = _mamba2_convolved(width, mixer) if mixer.conv_width else 0
    return 3 * _mamba2_heads(width, mixer) + taps


OPTIONAL: dict[str, object] = {
    "conv_width": 0, "input_activation": "none", "scale_scores": False, "output_gate": "none",
    "rotary": True, "qk_norm": False, "window": 0, "key_size": 0, "separate_scans": False,
    "local_width": 0, "expansion": 0, "expansion_map": "dense", "expand": 2, "state_size": 0, "groups": 1,
    "step_min": 1e-3, "step_max": 0.1,
}  # fmt: skip
"""Settings that not every kind has, and the values that they must have elsewhere."""
_SCANS = ("separate_scans", "local_width")

KINDS: dict[MixerKind, Kind] = {
    "hgru2": Kind(
        meaning="HGRN2: matrix state by outer product, key tied to the gate", made_by="hgrn2.layers.hgru2:HGRU2",
        offers=("conv_width", "input_activation", "scale_scores", "output_gate", *_SCANS),
        heads=True, lower_bounds=True, gates=True, norm=True, directions=_ALL,
    ),
    "hgru1": Kind(
        meaning="HGRN1: complex vector state", made_by="hgrn2.layers.hgru1:HGRU1",
        offers=("input_activation", *_SCANS), heads=False, lower_bounds=True, gates=True, norm=True,
        directions=_ALL, narrow_states=False, tokens="2 D", matrices=lambda width, mixer: 7 * width**2,
        biases=lambda width, mixer: 6 * width, vectors=lambda width, mixer: width,
        normed=lambda width, mixer: 2 * width, state=lambda width, mixer, tokens: 2 * width,
        scan=lambda width, mixer, tokens: 10 * width,
    ),
    "hgru1_real": Kind(
        meaning="HGRN1 without phases: real vector state", made_by="hgrn2.layers.hgru1:HGRU1",
        offers=("input_activation", *_SCANS), heads=False, lower_bounds=True, gates=True, norm=True,
        directions=_ALL, narrow_states=False, tokens="D", scanned=2,
        state=lambda width, mixer, tokens: width, scan=lambda width, mixer, tokens: 3 * width,
    ),
    "wide_hgru1": Kind(
        meaning="HGRN1's real recurrence on n D channels, which a structured map makes",
        made_by="hgrn2.layers.wide:WideHGRU1", offers=("input_activation", "expansion", "expansion_map", "groups"),
        heads=False, lower_bounds=True, gates=True, norm=True, directions=("causal",), narrow_states=False,
        matrices=lambda width, mixer: width**2 + 3 * _map_weights(width, mixer),
        biases=lambda width, mixer: width + 3 * width * copies(mixer),
        state=lambda width, mixer, tokens: width * copies(mixer),
        scan=lambda width, mixer, tokens: 5 * width * copies(mixer) + 6 * _map_products(width, mixer),
    ),
    "gla": Kind(
        meaning="gated linear attention: matrix state, key of its own", made_by="hgrn2.layers.gla:GLA",
        offers=("conv_width", "scale_scores", "key_size"), heads=True, lower_bounds=False, gates=True, norm=True,
        directions=("causal",), tokens="D k",
        matrices=lambda d, mixer: (3 * d + GATE_RANK) * d + (2 * d + GATE_RANK) * key_width(d, mixer),
        biases=lambda width, mixer: 3 * width + 2 * key_width(width, mixer), vectors=key_width,
        convolved=lambda width, mixer: width + 2 * key_width(width, mixer),
        state=lambda width, mixer, tokens: width * (mixer.key_size or mixer.head_size),
        scan=lambda width, mixer, tokens: 5 * width * (mixer.key_size or mixer.head_size),
    ),
    "mamba": Kind(
        meaning="Mamba: vector state of N numbers per channel, selective", made_by="hgrn2.layers.mamba:Mamba",
        offers=("conv_width", "expand", "state_size", "step_min", "step_max"), heads=False, lower_bounds=False,
        gates=True,
        norm=False, directions=("causal",), alone=True, narrow_states=False, tokens="E N",
        matrices=_mamba_matrices, biases=lambda width, mixer: 2 * inner_width(width, mixer) + width,
        vectors=_mamba_vectors, convolved=inner_width,
        state=lambda width, mixer, tokens: inner_width(width, mixer) * states_of(mixer),
        scan=lambda width, mixer, tokens: 5 * inner_width(width, mixer) * states_of(mixer),
    ),
    "mamba2": Kind(
        meaning="Mamba-2: matrix state, one gate a head, keys that heads share", made_by="hgrn2.layers.mamba2:Mamba2",
        offers=("conv_width", "expand", "state_size", "groups", "step_min", "step_max"), heads=True, lower_bounds=False,
        gates=True, norm=True, directions=("causal",), alone=True, tokens="E N",
        matrices=lambda width, mixer: width * (_mamba2_in(width, mixer) + inner_width(width, mixer)),
        biases=lambda width, mixer: _mamba2_in(width, mixer) + width, vectors=_mamba2_vectors, normed=inner_width,
        convolved=_mamba2_convolved,
        state=lambda width, mixer, tokens: inner_width(width, mixer) * states_of(mixer),
        scan=lambda width, mixer, tokens: 5 * inner_width(width, mixer) * states_of(mixer),
    ),
    "mingru": Kind(
        meaning="minGRU: real vector state; expanded by n, a matrix", made_by="hgrn2.layers.cells:MinGRU",
        offers=("expansion",), heads=False, lower_bounds=False, gates=True, norm=True, bare=True,
        directions=("causal",), narrow_states=False, tokens="D n",
        state=lambda width, mixer, tokens: _states(width, mixer),
        scan=lambda width, mixer, tokens: _cell_scan(width, mixer),
    ),
    "rglru": Kind(
        meaning="RG-LRU of Griffin: real vector state; expanded by n, a matrix", made_by="hgrn2.layers.cells:RGLRU",
        offers=("conv_width", "expansion", "groups"), heads=False, lower_bounds=False, gates=True, norm=True, bare=True,
        directions=("causal",), narrow_states=False, tokens="D n",
        matrices=lambda width, mixer: 3 * width**2 + 2 * width**2 // mixer.groups,
        biases=lambda width, mixer: 3 * width, vectors=lambda width, mixer: (3 + (mixer.conv_width > 0)) * width,
        convolved=lambda width, mixer: width, state=lambda width, mixer, tokens: _states(width, mixer),
        scan=lambda width, mixer, tokens: _cell_scan(width, mixer),
    ),
    "lru": Kind(
        meaning="LRU: complex vector state, decay not of the data; expanded by n, a matrix",
        made_by="hgrn2.layers.cells:LRU", offers=("expansion",), heads=False, lower_bounds=False, gates=True,
        norm=True, bare=True, directions=("causal",), narrow_states=False, tokens="2 D n",
        biases=lambda width, mixer: (4 if mixer.expansion else 3) * width, vectors=lambda width, mixer: 4 * width,
        normed=lambda width, mixer: width if mixer.expansion else 2 * width,
        state=lambda width, mixer, tokens: 2 * _states(width, mixer),
        scan=lambda width, mixer, tokens: (12 if mixer.expansion else 10) * _states(width, mixer),
    ),
    "attention": Kind(
        meaning="softmax attention over the keys so far, or over the whole sequence",
        made_by="hgrn2.layers.attention:Attention", offers=("conv_width", "rotary", "qk_norm", "window"),
        heads=True, lower_bounds=False, gates=False, norm=False,
        directions=("causal", "bidirectional"), grows=True, tokens="2 D S",
        vectors=lambda width, mixer: 2 * mixer.head_size if mixer.qk_norm else 0,
        state=lambda width, mixer, tokens: 2 * width * tokens, scan=lambda width, mixer, tokens: 4 * width * tokens,
    ),
}  # fmt: skip
