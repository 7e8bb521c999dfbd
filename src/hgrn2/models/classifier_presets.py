"""Published classifiers of images and sequences, and their baselines, by name: `vision_preset("hgrn2_vit_tiny")`.

No torch here. As in `presets`: a preset is the shape and the options of a model, never its training.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, overload

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import DeiTConfig, InitConfig, SequenceConfig, VisionConfig
from hgrn2.models.named import made

ViT = Literal["hgrn2_vit_tiny", "hgrn2_vit_small", "hgrn1_vit_tiny", "hgrn1_vit_small"]
MOST_HEAD = 64
"""Channels of an attention head, at most."""


@overload
def vision_preset(name: Literal["deit_tiny", "deit_small"], **overrides: Any) -> DeiTConfig: ...
@overload
def vision_preset(name: ViT, **overrides: Any) -> VisionConfig: ...
@overload
def vision_preset(name: str, **overrides: Any) -> Any: ...


def vision_preset(name: str, **overrides: Any) -> VisionConfig | DeiTConfig:
    """The named image classifier, with fields of its settings replaced; errors as of `preset`.

    Names of DeiT give a `DeiTConfig`, the others a `VisionConfig`.

    Example:
        >>> vision_preset("hgrn2_vit_tiny", classes=10, image_size=32, patch=4).width
        192
    """
    return made(name, _VISION, "vision ", overrides)


def sequence_preset(name: str, **overrides: Any) -> SequenceConfig:
    """The named sequence classifier, with fields of `SequenceConfig` replaced; errors as of `preset`.

    Example:
        >>> sequence_preset("hgrn2_lra_text", vocab_size=257).mixer.direction
        'bidirectional'
    """
    return made(name, _SEQUENCE, "sequence ", overrides)


def vision_names() -> tuple[str, ...]:
    """Every preset of an image classifier."""
    return tuple(_VISION)


def sequence_names() -> tuple[str, ...]:
    """Every preset of a sequence classifier."""
    return tuple(_SEQUENCE)


def _vit(kind: str, width: int) -> VisionConfig:
    """ImageNet models of 12 layers: no class token, no positions, mean pool, a norm without weights before the head.

    hgrn1: the released shell of HGRN1's image models, 14 x 14 patches, GLU of 2 D; 6.1 and 23.7 M parameters as
    published. hgrn2: its shell is not published, only its training script. With a GLU of 3 D and the usual 16 x 16
    patches the counts quoted for it (6.1 and 23.8 M, which we could not confirm) come out; with HGRN1's GLU it would
    have 4.8 and 18.4 M. The expansion is not known; 64 is our choice.
    """
    shared: dict[str, Any] = {"input_activation": "silu", "norm": "layer", "bias": True, "direction": "bidirectional"}
    hgrn1 = kind == "hgrn1"
    gates = {"kind": "hgru1"} if hgrn1 else {"head_size": 64, "output_activation": "sigmoid"}
    return VisionConfig(
        classes=1000,
        image_size=224,
        patch=14 if hgrn1 else 16,
        width=width,
        layers=12,
        mixer=MixerConfig(**gates, **shared),
        glu_width=(2 if hgrn1 else 3) * width,
        glu_bias=True,
        norm="layer",
        head_norm="simple_rms",
        lower_bound="exclusive",
    )


def _deit(width: int) -> DeiTConfig:
    """DeiT without distillation (arXiv 2012.12877), 12 layers: tiny 5.7 M and small 22.05 M parameters, as published.

    Stochastic depth is part of its training, 0.1 at the last block; give drop_path=0.1 for it.
    """
    return DeiTConfig(classes=1000, width=width)


def _lra(
    kind: str, layers: int, width: int, n: int, *, inputs: dict[str, Any], classes: int,
    direction: str = "bidirectional", norm: str = "batch", glu: int = 1, dropout: float = 0.0,
    positions: str = "none", pair: bool = False,
) -> SequenceConfig:  # fmt: skip
    """Long Range Arena by HGRN2's script (`run_lra.py`): the rows name L, D, n, the ratio of the GLU, the norm, the
    dropout, the form in two dimensions and the encoder.

    Not in the script: the modules' own options (those of the hgru2 package here), the GLU's activation (SiLU, as in the
    authors' image models), and what the encoder called `position` adds; sines, which have no weights, here. Its
    synchronised batch norm is an ordinary one where there is one device. hgrn1: the same rows with HGRN1's unit, a
    comparison of ours and not its published recipe. transformer: the same rows with softmax attention over the whole
    sequence in heads of D/4 channels, at most 64, without rotary positions. It sees no order by itself, nor an image's
    shape: positions are sines in every row, and images a line of pixels.

    The script names no start. Here weights have the size of PyTorch's own (uniform within D^-1/2, a standard deviation
    of (3 D)^-1/2), and tokens that of the sines beside them.
    """
    if kind == "transformer":
        direction, positions = "bidirectional", "sine"
    shared: dict[str, Any] = {"norm": "layer", "bias": True, "direction": direction}
    unit: dict[str, Any] = {
        "hgrn2": {"input_activation": "silu", "output_activation": "sigmoid", "head_size": n},
        "hgrn1": {"input_activation": "silu", "kind": "hgru1"},
        "transformer": {"kind": "attention", "head_size": min(MOST_HEAD, width // 4), "rotary": False},
    }[kind]
    return SequenceConfig(
        **inputs,
        classes=classes,
        pair=pair,
        positions=positions,  # pyright: ignore[reportArgumentType]
        width=width,
        layers=layers,
        mixer=MixerConfig(**unit, **shared),
        glu_width=glu * width,
        glu_bias=True,
        norm=norm,  # pyright: ignore[reportArgumentType]
        norm_eps=1e-5,
        dropout=dropout,
        lower_bound="none" if kind == "transformer" else "exclusive",
        init=InitConfig(std=round((3 * width) ** -0.5, 4), input_std=1.0),
    )


_VISION: dict[str, Callable[[], VisionConfig | DeiTConfig]] = {
    "hgrn2_vit_tiny": lambda: _vit("hgrn2", 192),
    "hgrn2_vit_small": lambda: _vit("hgrn2", 384),
    "hgrn1_vit_tiny": lambda: _vit("hgrn1", 192),
    "hgrn1_vit_small": lambda: _vit("hgrn1", 384),
    "deit_tiny": lambda: _deit(192),
    "deit_small": lambda: _deit(384),
}

_BYTES, _GREY, _COLOUR = {"vocab_size": 256}, {"channels": 1}, {"channels": 3}
_LRA: dict[str, Callable[[str], SequenceConfig]] = {
    "image": lambda kind: _lra(kind, 6, 512, 2, inputs=_COLOUR, classes=10, direction="parallel_2d", positions="sine"),
    "text": lambda kind: _lra(kind, 4, 128, 8, inputs=_BYTES, classes=2, norm="layer", dropout=0.1),
    "listops": lambda kind: _lra(kind, 5, 64, 4, inputs={"vocab_size": 18}, classes=10, positions="sine"),
    "pathfinder": lambda kind: _lra(kind, 6, 128, 2, inputs=_GREY, classes=2, direction="parallel_2d"),
    "pathx": lambda kind: _lra(kind, 6, 32, 1, inputs=_GREY, classes=2, direction="series_2d", positions="sine"),
    "retrieval": lambda kind: _lra(kind, 2, 256, 2, inputs=_BYTES, classes=2, glu=2, positions="sine", pair=True),
}
_SEQUENCE: dict[str, Callable[[], SequenceConfig]] = {
    f"{kind}_lra_{task}": functools.partial(make, kind)
    for kind in ("hgrn2", "hgrn1", "transformer")
    for task, make in _LRA.items()
}
