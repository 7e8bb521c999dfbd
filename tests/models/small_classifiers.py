"""Small classifiers that the tests of the models go through."""

from typing import Any

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import SequenceConfig, VisionConfig

HGRU2: dict[str, Any] = {"input_activation": "silu", "output_activation": "sigmoid", "norm": "layer", "bias": True}
STACK: dict[str, Any] = {"width": 16, "layers": 2, "glu_width": 20, "norm": "layer", "lower_bound": "exclusive"}
SEQUENCES: dict[str, dict[str, Any]] = {
    "ids": {"vocab_size": 23, "mixer": MixerConfig(head_size=4, direction="bidirectional", **HGRU2)},
    "ids batch norm": {
        "vocab_size": 23,
        "norm": "batch",
        "glu_bias": True,
        "positions": "sine",
        "mixer": MixerConfig(head_size=2, direction="bidirectional", **HGRU2),
    },
    "real causal": {"channels": 3, "mixer": MixerConfig(head_size=8), "positions": "learned", "max_length": 14},
    "real hgru1": {
        "channels": 1,
        "head_norm": "simple_rms",
        "mixer": MixerConfig(kind="hgru1", direction="bidirectional", separate_scans=True, norm="layer", bias=True),
    },
    "pair": {
        "vocab_size": 23,
        "pair": True,
        "head_norm": "layer",
        "mixer": MixerConfig(head_size=1, direction="bidirectional", **HGRU2),
    },
    "attention": {
        "vocab_size": 23,
        "positions": "sine",
        "glu_bias": True,
        "lower_bound": "none",
        "mixer": MixerConfig(kind="attention", head_size=4, direction="bidirectional", rotary=False, bias=True),
    },
    "local and gated": {
        "vocab_size": 23,
        "mixer": MixerConfig(
            head_size=4, direction="bidirectional", separate_scans=True, local_width=5, output_gate="silu", **HGRU2
        ),
    },
    "2-D": {"channels": 1, "mixer": MixerConfig(head_size=2, direction="series_2d", separate_scans=True, **HGRU2)},
}
IMAGES: dict[str, dict[str, Any]] = {
    "patches": {"patch": 4, "mixer": MixerConfig(head_size=8, direction="bidirectional", **HGRU2)},
    "pixels": {
        "patch": 1,
        "image_size": 8,
        "channels": 1,
        "positions": "sine",
        "mixer": MixerConfig(head_size=1, direction="parallel_2d", separate_scans=True, **HGRU2),
    },
    "local and gated patches": {
        "patch": 2,
        "image_size": 8,
        "mixer": MixerConfig(head_size=4, direction="parallel_2d", local_width=3, output_gate="sigmoid", **HGRU2),
    },
    "local hgru1": {
        "patch": 2,
        "image_size": 8,
        "mixer": MixerConfig(kind="hgru1", direction="series_2d", local_width=3, norm="layer", bias=True),
    },
    "attention patches": {
        "patch": 4,
        "positions": "learned",
        "lower_bound": "none",
        "mixer": MixerConfig(kind="attention", head_size=8, direction="bidirectional"),
    },
    "learned": {
        "patch": 4,
        "positions": "learned",
        "head_norm": "simple_rms",
        "norm": "batch",
        "mixer": MixerConfig(kind="hgru1_real", direction="series_2d", separate_scans=True, norm="layer", bias=True),
    },
}


def sequence_config(name: str, **changes: Any) -> SequenceConfig:
    """A sequence classifier of two layers of 16 channels and five classes."""
    return SequenceConfig(**STACK | {"classes": 5} | SEQUENCES[name] | changes)


def vision_config(name: str, **changes: Any) -> VisionConfig:
    """An image classifier of two layers of 16 channels and five classes."""
    return VisionConfig(**STACK | {"classes": 5, "image_size": 16} | IMAGES[name] | changes)
