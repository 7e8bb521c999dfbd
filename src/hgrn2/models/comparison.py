"""Language models of several architectures at equal size, to be trained beside each other. No torch here.

Every size has one width, tied embeddings, RMSNorm before each part, no biases and normal(0, 0.02) weights. What differs
is the mixer, in the form in which it was published:

    hgrn2            4 D², heads of 128 (32 in `small`), no convolution (arXiv 2404.07904)
    hgrn1            the real form, 4 D² (arXiv 2311.04823)
    llama            attention with rotary positions, heads of 64 (32) (arXiv 2302.13971)
    gla              keys half as wide as values, 4 D²; values of 256 and keys of 128 a head (64 and 32), which at a
                     width of 1024 are the published four heads, and give a state of HGRN2's size (arXiv 2312.06635)
    mamba, mamba2    blocks without a GLU, about twice as many, twice as wide inside, a convolution of 4; states of 16
                     numbers per channel, and keys of 128 with values of 64 a head (64 and 32), as published, sizes 125m
                     and 350m with the published width and depth (arXiv 2312.00752, 2405.21060)
    hgrn2-attention  hgrn2 with every fourth layer attention
    hgrn2-window     the same, and attention looks 512 tokens back

All others have a GLU with SiLU of the same width behind each mixer. `hgrn2.models.expansions` has more, which are
compared among each other.
"""

from collections.abc import Callable
from typing import Any

from hgrn2.errors import unknown
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.expansions import EXPANSIONS

GPT2_VOCABULARY = 50_257
WINDOW = 512
"""Tokens that attention of hgrn2-window sees."""
_SHAPES = {"small": (128, 4, 360), "45m": (512, 8, 1408), "125m": (768, 12, 2240), "350m": (1024, 24, 2944)}
"""Width, layers and width of the GLU."""
_ALONE = {"small": 7, "45m": 15, "125m": 24, "350m": 48}
"""Layers of models without a GLU."""
COMPARED_SIZES = tuple(_SHAPES)
"""`small` is for minutes on a CPU."""


def _hgrn2(small: bool, **options: Any) -> dict[str, Any]:
    return {"mixer": MixerConfig(head_size=32 if small else 128, **options)}


def _hybrid(small: bool, window: int) -> dict[str, Any]:
    other = MixerConfig(kind="attention", head_size=32 if small else 64, window=window)
    return _hgrn2(small) | {"pattern": ("hgru2", "hgru2", "hgru2", "attention"), "other": other}


def _hgrn1(small: bool) -> dict[str, Any]:
    return {"mixer": MixerConfig(kind="hgru1_real", input_activation="silu")}


def _llama(small: bool) -> dict[str, Any]:
    return {"mixer": MixerConfig(kind="attention", head_size=32 if small else 64), "lower_bound": "none"}


def _gla(small: bool) -> dict[str, Any]:
    values, keys = (64, 32) if small else (256, 128)
    options: dict[str, Any] = {"norm": "head_rms", "scale_scores": True}
    return {"mixer": MixerConfig(kind="gla", head_size=values, key_size=keys, **options), "lower_bound": "none"}


def _mamba(small: bool) -> dict[str, Any]:
    return {"mixer": MixerConfig(kind="mamba", conv_width=4), "glu_width": 0, "lower_bound": "none"}


def _mamba2(small: bool) -> dict[str, Any]:
    head, states = (32, 64) if small else (64, 128)
    mixer = MixerConfig(kind="mamba2", head_size=head, state_size=states, conv_width=4)
    return {"mixer": mixer, "glu_width": 0, "lower_bound": "none"}


_ARCHITECTURES: dict[str, Callable[[bool], dict[str, Any]]] = {
    "hgrn2": _hgrn2,
    "hgrn1": _hgrn1,
    "llama": _llama,
    "gla": _gla,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "hgrn2-attention": lambda small: _hybrid(small, 0),
    "hgrn2-window": lambda small: _hybrid(small, WINDOW),
}
COMPARED = tuple(_ARCHITECTURES)
"""The architectures, ours first."""
ARCHITECTURES = (*COMPARED, *EXPANSIONS)
"""Those, and the models of the studies of state expansion."""


def comparison_config(architecture: str, size: str, vocab_size: int = GPT2_VOCABULARY) -> ModelConfig:
    """The model of one architecture at one size; those of a size in `COMPARED` have as many parameters as each
    other, within 1 %, and so have the cells and the structured maps of `hgrn2.models.expansions`.

    Args:
        architecture: one of `ARCHITECTURES`.
        size: one of `COMPARED_SIZES`.
        vocab_size: V; embeddings are tied and count once. The sizes are named by their parameters with GPT-2's.

    Raises:
        UserError: an unknown architecture or size.
    """
    for what, value, known in (("architecture", architecture, ARCHITECTURES), ("size", size, COMPARED_SIZES)):
        if value not in known:
            raise unknown(what, value, known)
    width, layers, glu_width = _SHAPES[size]
    own = (
        EXPANSIONS[architecture](width) if architecture in EXPANSIONS else _ARCHITECTURES[architecture](size == "small")
    )
    options: dict[str, Any] = {"glu_width": glu_width} | own
    layers = layers if options["glu_width"] else _ALONE[size]
    return ModelConfig(vocab_size=vocab_size, width=width, layers=layers, tie_embeddings=True, **options)


def comparison_names() -> tuple[str, ...]:
    """Every comparison by the name that `preset` takes: compare-45m/hgrn2 and so on."""
    return tuple(f"compare-{size}/{architecture}" for size in COMPARED_SIZES for architecture in ARCHITECTURES)
