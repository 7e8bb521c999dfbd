"""Published models and our own small ones, by name: `preset("hgrn2_1.3b")`. No torch here.

A preset is the shape and the options of a model, never its training. Each function names its source and states what
the source leaves open. Number of parameters: `hgrn2.models.count`, tested against the published ones. Those of
classifiers stand in `classifier_presets`, architectures to be compared at equal size in `comparison`; both are found
from here too.
"""

from collections.abc import Callable
from typing import Any

from hgrn2.layers.config import MixerConfig
from hgrn2.models.classifier_presets import sequence_names, sequence_preset, vision_names, vision_preset
from hgrn2.models.comparison import COMPARED, COMPARED_SIZES, comparison_config, comparison_names
from hgrn2.models.config import ModelConfig
from hgrn2.models.named import made

__all__ = [
    "COMPARED", "COMPARED_SIZES", "comparison_config", "comparison_names", "names", "preset", "sequence_names",
    "sequence_preset", "vision_names", "vision_preset",
]  # fmt: skip


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The named configuration, with fields of `ModelConfig` replaced: one of `names` or `comparison_names`.

    Example:
        >>> preset("hgrn2_44m_wikitext103", vocab_size=50257).width
        512

    Raises:
        UserError: an unknown name (the message offers near ones and lists all), an unknown field, or values that do
            not fit together.
    """
    size, slash, architecture = name.removeprefix("compare-").partition("/")
    if slash and name.startswith("compare-"):
        return made(name, {name: lambda: comparison_config(architecture, size)}, "", overrides)
    return made(name, _PRESETS, "", overrides)


def names() -> tuple[str, ...]:
    """Every preset of a language model but those to be compared, sizes in the order of the tables below."""
    return tuple(_PRESETS)


def _demo() -> ModelConfig:
    """1.8 M parameters for a few minutes on a laptop's processor: characters, a short convolution, LayerNorm (the
    paper's figure has it, and on a CPU it is one fused operation)."""
    return ModelConfig(
        vocab_size=65,
        width=192,
        layers=4,
        mixer=MixerConfig(head_size=32, conv_width=4, norm="layer"),
        glu_width=512,
        norm="layer",
    )


def _wikitext103(kind: str) -> ModelConfig:
    """The test bed of both papers: 6 layers of 512, biases, LayerNorm, tied embeddings, GLU without activation.

    Source: fairseq code of HGRN1 (`hgrn_lm_base`) and HGRN2's training script (`hgrn2_lm_outproduct_128`, whose
    definition is not published). hgrn1: hidden width 2 D, 46.25 M parameters as reported. hgrn2: the same shell with
    hidden width 8 D / 3 gives 44.66 M; with 2 D it would give 41.5 M. Vocabulary: GPT-2's with fairseq's special
    tokens; pass vocab_size=50257 for GPT-2's own.
    """
    shared = {"norm": "layer", "bias": True}
    if kind == "hgrn1":
        mixer, glu_width = MixerConfig(kind="hgru1", input_activation="silu", **shared), 1024
    else:
        mixer, glu_width = MixerConfig(head_size=128, **shared), 1365
    return ModelConfig(
        vocab_size=50265,
        width=512,
        layers=6,
        mixer=mixer,
        glu_width=glu_width,
        glu_activation="none",
        glu_bias=True,
        norm="layer",
        norm_eps=1e-5,
        tie_embeddings=True,
        scale_embeddings=True,
        dropout=0.1,
    )


def _scaling_laws(layers: int, width: int, glu_width: int) -> ModelConfig:
    """Shapes of "Scaling Laws for Linear Complexity Language Models" (arXiv 2406.16690), by the authors of HGRN2.

    Its counts without embeddings (20.5 to 6476.1 M) come out to the digit with norms without weights and with lower
    bounds, as in the authors' own language model (hgru2-pytorch), whose GLU has no activation; its names (70M, …) fit
    tied embeddings. At 1B the table prints a hidden width of 5632, which contradicts its own count; 4096 agrees with
    it.
    """
    return ModelConfig(
        vocab_size=100280,
        width=width,
        layers=layers,
        mixer=MixerConfig(head_size=128, norm="simple_rms", norm_eps=1e-6),
        glu_width=glu_width,
        glu_activation="none",
        norm="simple_rms",
        tie_embeddings=True,
    )


def _fla_hgrn2(layers: int, width: int, glu_width: int) -> ModelConfig:
    """HGRN2 of flash-linear-attention: hub models hgrn2-1.3B-100B and hgrn2-2.7B-100B, and flame's 340M config.

    Scores are scaled by n^-1/2, and the mixer's norm has an eps of 1e-5 whatever the configuration file says: the
    fused norm there is called without it.
    """
    return ModelConfig(
        vocab_size=32000,
        width=width,
        layers=layers,
        mixer=MixerConfig(head_size=128, scale_scores=True, norm_eps=1e-5),
        glu_width=glu_width,
        norm_eps=1e-6,
    )


def _fla_hgrn1(layers: int, width: int, glu_width: int) -> ModelConfig:
    """HGRN1 of flash-linear-attention, the real form: hub models hgrn-1.3B-100B and hgrn-2.7B-100B."""
    return ModelConfig(
        vocab_size=32000,
        width=width,
        layers=layers,
        mixer=MixerConfig(kind="hgru1_real", input_activation="silu", norm_eps=1e-6),
        glu_width=glu_width,
        norm_eps=1e-6,
    )


def _hgrn1_150m() -> ModelConfig:
    """Complex HGRN1 of the authors' release HGRN-150M, by its config file: LayerNorm, SiLU in the GLU, no bias.

    Tied embeddings are inferred: 146.1 M parameters with them, 184.7 M without.
    """
    return ModelConfig(
        vocab_size=50272,
        width=768,
        layers=14,
        mixer=MixerConfig(kind="hgru1", input_activation="silu", norm="layer"),
        glu_width=1536,
        norm="layer",
        norm_eps=1e-5,
        tie_embeddings=True,
        scale_embeddings=True,
    )


_PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "hgrn2_demo": _demo,
    "hgrn2_44m_wikitext103": lambda: _wikitext103("hgrn2"),
    "hgrn2_70m": lambda: _scaling_laws(6, 512, 1536),
    "hgrn2_160m": lambda: _scaling_laws(12, 768, 2048),
    "hgrn2_340m": lambda: _fla_hgrn2(24, 1024, 2816),
    "hgrn2_410m": lambda: _scaling_laws(26, 1024, 2816),
    "hgrn2_1b": lambda: _scaling_laws(32, 1536, 4096),
    "hgrn2_1.3b": lambda: _fla_hgrn2(24, 2048, 5632),
    "hgrn2_2.7b": lambda: _fla_hgrn2(32, 2560, 6912),
    "hgrn2_3b": lambda: _scaling_laws(35, 2560, 6912),
    "hgrn2_7b": lambda: _scaling_laws(32, 4096, 11008),
    "hgrn1_44m_wikitext103": lambda: _wikitext103("hgrn1"),
    "hgrn1_150m": _hgrn1_150m,
    "hgrn1_1.3b": lambda: _fla_hgrn1(24, 2048, 5632),
    "hgrn1_2.7b": lambda: _fla_hgrn1(32, 2560, 6912),
}
