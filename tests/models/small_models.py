"""Small models of every kind that the tests of the models go through."""

from typing import Any

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig

VOCABULARY = 23
CONFIGS: dict[str, dict[str, Any]] = {
    "hgru2": {"mixer": MixerConfig(head_size=8)},
    "hgru2 conv": {"mixer": MixerConfig(head_size=8, conv_width=4), "tie_embeddings": True},
    "hgru2 modules": {
        "mixer": MixerConfig(
            head_size=4, input_activation="silu", output_activation="sigmoid", norm="layer", bias=True
        ),
        "norm": "layer",
        "glu_activation": "none",
        "glu_bias": True,
        "lower_bound": "exclusive",
        "scale_embeddings": True,
    },
    "hgru2 without bounds": {"mixer": MixerConfig(head_size=16, norm="head_rms"), "lower_bound": "none"},
    "hgru1": {"mixer": MixerConfig(kind="hgru1", input_activation="silu", norm="layer", bias=True), "glu_bias": True},
    "hgru1_real": {"mixer": MixerConfig(kind="hgru1_real", input_activation="silu"), "norm": "simple_rms"},
    "gla": {"mixer": MixerConfig(kind="gla", head_size=8, conv_width=4, bias=True), "lower_bound": "none"},
    "gla with short keys": {
        "mixer": MixerConfig(kind="gla", head_size=8, key_size=4, conv_width=3, norm="head_rms"),
        "lower_bound": "none",
    },
    "mamba": {"mixer": MixerConfig(kind="mamba", state_size=3, conv_width=4), "glu_width": 0, "lower_bound": "none"},
    "mamba with a GLU": {"mixer": MixerConfig(kind="mamba", expand=1, bias=True), "lower_bound": "none"},
    "mamba2": {
        "mixer": MixerConfig(kind="mamba2", head_size=8, state_size=5, groups=2, conv_width=4, bias=True),
        "glu_width": 0,
        "lower_bound": "none",
        "tie_embeddings": True,
    },
    "wide": {"mixer": MixerConfig(kind="wide_hgru1", expansion=3, expansion_map="kronecker", bias=True)},
    "rglru expanded": {
        "mixer": MixerConfig(kind="rglru", groups=4, conv_width=3, expansion=8, bias=True),
        "lower_bound": "none",
    },
    "lru expanded": {"mixer": MixerConfig(kind="lru", expansion=4, norm="layer", bias=True), "lower_bound": "none"},
    "attention with normed keys": {
        "mixer": MixerConfig(kind="attention", head_size=8, qk_norm=True),
        "lower_bound": "none",
    },
    "hybrid": {
        "mixer": MixerConfig(head_size=8, conv_width=4),
        "pattern": ("hgru2", "attention"),
        "other": MixerConfig(kind="attention", head_size=8, window=5),
    },
}

HGRN = [name for name in CONFIGS if name.startswith("hgru")]
"""The models of this project; transformers' classes and the published formats know no others."""


def config_of(name: str, **changes: Any) -> ModelConfig:
    """A model of three layers of 16 channels."""
    return ModelConfig(
        **{"vocab_size": VOCABULARY, "width": 16, "layers": 3, "glu_width": 24} | CONFIGS[name] | changes
    )
