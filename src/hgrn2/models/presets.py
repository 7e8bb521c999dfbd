"""Published models and our own small ones, by name: `preset("hgrn2_1.3b")`. No torch here.

A preset is the shape and the options of a model, never its training. Each function names its source and states what
the source leaves open. Number of parameters: `hgrn2.models.count`, tested against the published ones.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig, SequenceConfig, StackConfig, VisionConfig

Config = TypeVar("Config", bound=StackConfig)


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The named configuration, with fields of `ModelConfig` replaced.

    Example:
        >>> preset("hgrn2_44m_wikitext103", vocab_size=50257).width
        512

    Raises:
        UserError: an unknown name (the message offers near ones and lists all), an unknown field, or values that do
            not fit together.
    """
    return _made(name, _PRESETS, "", overrides)


def vision_preset(name: str, **overrides: Any) -> VisionConfig:
    """The named image classifier, with fields of `VisionConfig` replaced; errors as of `preset`.

    Example:
        >>> vision_preset("hgrn2_vit_tiny", classes=10, image_size=32, patch=4).width
        192
    """
    return _made(name, _VISION, "vision ", overrides)


def sequence_preset(name: str, **overrides: Any) -> SequenceConfig:
    """The named sequence classifier, with fields of `SequenceConfig` replaced; errors as of `preset`.

    Example:
        >>> sequence_preset("hgrn2_lra_text", vocab_size=257).mixer.direction
        'bidirectional'
    """
    return _made(name, _SEQUENCE, "sequence ", overrides)


def _made(name: str, table: dict[str, Callable[[], Config]], what: str, overrides: dict[str, Any]) -> Config:
    if name not in table:
        near = _suggestion(name, table)
        raise UserError(f"there is no {what}preset {name!r}{near}; {what}presets: {', '.join(table)}")
    base = table[name]()
    fields = [field.name for field in dataclasses.fields(base)]
    unknown = sorted(set(overrides) - set(fields))
    if unknown:
        raise UserError(f"a model has no setting {', '.join(unknown)}; it has: {', '.join(fields)}")
    return dataclasses.replace(base, **overrides)


def names() -> tuple[str, ...]:
    """Every preset of a language model, sizes in the order of the tables below."""
    return tuple(_PRESETS)


def vision_names() -> tuple[str, ...]:
    """Every preset of an image classifier."""
    return tuple(_VISION)


def sequence_names() -> tuple[str, ...]:
    """Every preset of a sequence classifier."""
    return tuple(_SEQUENCE)


def _suggestion(name: str, table: Collection[str]) -> str:
    """` (did you mean …?)` with the nearest names, also where only `hgrn2_` or the case is missing."""
    wanted = name.strip().lower().replace("-", "_")
    near = [known for known in (f"hgrn2_{wanted}", f"hgrn1_{wanted}", wanted) if known in table]
    near += [known for known in difflib.get_close_matches(wanted, table, n=3, cutoff=0.7) if known not in near]
    return f" (did you mean {' or '.join(near[:3])}?)" if near else ""


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

    Its counts without embeddings (20.5 to 6476.1 M) come out to the digit with norms without weights and with bounds,
    as in the authors' own language model (hgru2-pytorch), whose GLU has no activation; its names (70M, …) fit tied
    embeddings. At 1B the table prints a hidden width of 5632, which contradicts its own count; 4096 agrees with it.
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
    comparison of ours and not its published recipe.
    """
    shared: dict[str, Any] = {"input_activation": "silu", "norm": "layer", "bias": True, "direction": direction}
    gates = {"kind": "hgru1"} if kind == "hgrn1" else {"head_size": n, "output_activation": "sigmoid"}
    return SequenceConfig(
        **inputs,
        classes=classes,
        pair=pair,
        positions=positions,  # pyright: ignore[reportArgumentType]
        width=width,
        layers=layers,
        mixer=MixerConfig(**gates, **shared),
        glu_width=glu * width,
        glu_bias=True,
        norm=norm,  # pyright: ignore[reportArgumentType]
        norm_eps=1e-5,
        dropout=dropout,
        lower_bound="exclusive",
    )


_VISION: dict[str, Callable[[], VisionConfig]] = {
    "hgrn2_vit_tiny": lambda: _vit("hgrn2", 192),
    "hgrn2_vit_small": lambda: _vit("hgrn2", 384),
    "hgrn1_vit_tiny": lambda: _vit("hgrn1", 192),
    "hgrn1_vit_small": lambda: _vit("hgrn1", 384),
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
    f"{kind}_lra_{task}": functools.partial(make, kind) for kind in ("hgrn2", "hgrn1") for task, make in _LRA.items()
}
