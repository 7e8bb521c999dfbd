"""HGRN2 and HGRN of flash-linear-attention: their config.json and state dict, both ways.

What they compute beside the options of the file: scores times n^-1/2 and an output norm with eps 1e-5, whatever
norm_eps says (HGRN2; the fused call there leaves eps out); lower bounds by the inclusive sum, zero in the first layer.
The lower bound is applied in log space there, log f = logaddexp(log γ, log1p(-γ) + logsigmoid(x)): the same function as
f = γ + (1-γ) σ(x), so it needs no setting, and ours keeps the digits of 1 - f that 1 - exp(log f) loses.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.convert.fields import Fields
from hgrn2.models.convert.rules import Part, Rule
from hgrn2.settings import refuse

OUTPUT_NORM_EPS = 1e-5
_NO_EFFECT = (
    "attn_mode", "max_position_embeddings", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy",
    "fuse_linear_cross_entropy", "use_l2warp",
)  # fmt: skip


def read_config(values: dict[str, Any], path: Path, ignore: Collection[str] = (), **more: Any) -> ModelConfig:
    """Our settings for a config.json of model_type hgrn2 or hgrn; what is not supported is a `UserError`."""
    fields = Fields(values, path, **more)
    first = fields.choice("model_type", "hgrn2", {"hgrn2": False, "hgrn": True})
    fields.must_be_off("attn", "a hybrid with softmax attention in some layers")
    fields.must_be_off("attnres_block_size", "attention over residuals")
    width, ratio = fields.size("hidden_size", 2048), fields.get("hidden_ratio", float, 4, optional=True) or 4
    refuse(not 0 < ratio < 1e6, f"{path}: hidden_ratio is {ratio:g}; it must be positive")
    eps = fields.get("norm_eps", float, 1e-6, old="rms_norm_eps")
    norm = "rms" if fields.get("elementwise_affine", bool, True, optional=True) else "simple_rms"
    hidden = fields.get("intermediate_size", int, None, optional=True)
    shape = {
        "vocab_size": fields.size("vocab_size", 32000),
        "width": width,
        "layers": fields.size("num_hidden_layers", 24),
        "glu_width": hidden if hidden is not None else 256 * -(-int(width * ratio * 2 / 3) // 256),
        "glu_activation": fields.choice("hidden_act", "swish", {"swish": "silu", "silu": "silu"}),
        "norm_eps": eps,
        "tie_embeddings": fields.get("tie_word_embeddings", bool, False),
        "lower_bound": "inclusive" if fields.get("use_lower_bound", bool, True) else "none",
    }
    std = fields.get("initializer_range", float, 0.02)
    taps = _taps(fields)
    with fields.named():
        if first:
            _refuse_hgrn1(fields, taps)
            mixer = MixerConfig(kind="hgru1_real", input_activation="silu", norm=norm, norm_eps=eps)
        else:
            size = _head_size(fields, width)
            mixer = MixerConfig(head_size=size, scale_scores=True, norm=norm, norm_eps=OUTPUT_NORM_EPS, conv_width=taps)
        fields.finish(_NO_EFFECT, ignore)
        return ModelConfig(**shape, mixer=mixer, init=InitConfig(std=std))


def _head_size(fields: Fields, width: int) -> int:
    """expand_ratio where it is given (the layer lets it win over num_heads), else from num_heads."""
    size = fields.get("expand_ratio", int, 128, optional=True)
    heads = fields.get("num_heads", int, None, optional=True)
    if size is not None:
        return size
    refuse(heads is None, f"{fields.path} has neither expand_ratio nor num_heads")
    refuse(heads < 1 or width % heads != 0, f"{fields.path}: hidden_size {width} does not divide into {heads} heads")
    return width // heads


def _refuse_hgrn1(fields: Fields, taps: int) -> None:
    """What HGRN offers there and not here."""
    fields.read.add("num_heads")  # in old files, without effect
    ratio = fields.get("expand_ratio", float, 1, optional=True)
    refuse(ratio not in (None, 1), f"{fields.path}: expand_ratio {ratio:g} of HGRN is not supported; only 1 is")
    refuse(taps > 0, f"{fields.path}: use_short_conv of HGRN is not supported")


def _taps(fields: Fields) -> int:
    """Width of the short convolutions, 0 without.

    Files with share_conv_kernel are of 2024. Convolutions carried a SiLU until August of that year and none since, and
    nothing in the file says which: guessing could be silently wrong.
    """
    used, size = fields.get("use_short_conv", bool, False), fields.get("conv_size", int, 4)
    fields.read.add("share_conv_kernel")
    refuse(
        used and "share_conv_kernel" in fields.values,
        f"{fields.path}: short convolutions of 2024 (share_conv_kernel) are not supported: some had a SiLU, some not; "
        "remove share_conv_kernel where they are separate and had none",
    )
    return size if used else 0


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model that flash-linear-attention computes alike; see `representable`."""
    representable(config)
    mixer, second = config.mixer, config.mixer.kind == "hgru2"
    own = {"num_heads": config.heads, "expand_ratio": mixer.head_size} if second else {"expand_ratio": 1}
    return {
        "architectures": ["HGRN2ForCausalLM" if second else "HGRNForCausalLM"],
        "model_type": "hgrn2" if second else "hgrn",
        "attn": None,
        "attn_mode": "chunk" if second else "fused_recurrent",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        **own,
        "use_short_conv": mixer.conv_width > 0,
        "conv_size": mixer.conv_width or 4,
        "use_lower_bound": config.lower_bound != "none",
        "hidden_ratio": 4,
        "intermediate_size": config.glu_width,
        "hidden_act": "swish",
        "elementwise_affine": mixer.norm == "rms",
        "norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init.std,
        "vocab_size": config.vocab_size,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": dtype,
    }


def representable(config: ModelConfig) -> None:
    """Refuse settings that no option of flash-linear-attention gives.

    The formula of the lower bounds, score scale, eps of HGRN2's output norm and norms without weights are no obstacles:
    tensors are written so that its fixed choices give the same function (`hgrn2.models.convert.exact`).
    """
    mixer, second = config.mixer, config.mixer.kind == "hgru2"
    given = {
        "mixer.kind hgru1 (complex states)": mixer.kind == "hgru1",
        f"mixer.kind {mixer.kind} as HGRN2": not mixer.kind.startswith("hgru"),
        f"pattern {','.join(config.pattern)}": len(config.kinds) > 1,
        "mixer.bias": mixer.bias,
        "glu_bias": config.glu_bias,
        f"glu_activation {config.glu_activation}": config.glu_activation != "silu",
        f"norm {config.norm}": config.norm not in ("rms", "simple_rms"),
        f"mixer.norm {mixer.norm}": mixer.norm not in ("rms", "simple_rms"),
        f"mixer.output_activation {mixer.output_activation}": mixer.output_activation != "silu",
        f"mixer.input_activation {mixer.input_activation}": mixer.input_activation != ("none" if second else "silu"),
        "scale_embeddings": config.scale_embeddings,
        f"mixer.norm_eps {mixer.norm_eps:g} beside norm_eps {config.norm_eps:g}": not second
        and mixer.norm_eps != config.norm_eps,
    }
    faults = [what for what, is_so in given.items() if is_so]
    refuse(bool(faults), f"flash-linear-attention has no {', no '.join(faults)}: this model cannot be written for it")


def rules(config: ModelConfig) -> list[Rule]:
    """Its state dict; settings of `read_config`, or those with norms of weight one written out (`with_weights`)."""
    width, vocabulary = config.width, config.vocab_size
    named = [Rule("embedding.weight", (Part("model.embeddings.weight", (vocabulary, width)),))]
    if config.lower_bound != "none":
        named += [Rule("backbone.lower_bounds", (Part("model.lower_bounds", (config.layers, width)),))]
    for layer in range(config.layers):
        named += _block(config, f"backbone.blocks.{layer}.", f"model.layers.{layer}.")
    named += [Rule("backbone.norm.weight", (Part("model.norm.weight", (width,)),))]
    if not config.tie_embeddings:
        named += [Rule("head.weight", (Part("lm_head.weight", (vocabulary, width)),))]
    return named


def _block(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    width, hidden, mixer = config.width, config.glu_width, config.mixer
    order = ("i", "q", "f") if mixer.kind == "hgru2" else ("i", "g", "f")  # that of our fused projection
    square, vector = (width, width), (width,)

    def rule(name: str, shape: tuple[int, ...], *parts: str, taps: bool = False) -> Rule:
        return Rule(ours + name, tuple(Part(theirs + part + ".weight", shape) for part in parts), taps)

    found = [
        rule("mixer_norm.weight", vector, "attn_norm"),
        rule("mixer.in_proj.weight", square, *(f"attn.{role}_proj" for role in order)),
        rule("mixer.out_proj.weight", square, "attn.o_proj"),
        rule("glu_norm.weight", vector, "mlp_norm"),
        rule("glu.in_proj.weight", (hidden, width), "mlp.gate_proj", "mlp.up_proj"),
        rule("glu.out_proj.weight", (width, hidden), "mlp.down_proj"),
    ]
    if mixer.norm == "rms":
        found += [rule("mixer.norm.weight", vector, "attn.g_norm")]
    if mixer.conv_width:
        shape = (width, 1, mixer.conv_width)
        found += [rule("mixer.conv", shape, *(f"attn.{role}_conv1d" for role in order), taps=True)]
    return found


def with_weights(config: ModelConfig) -> ModelConfig:
    """The same settings with weights in the norms of the residual stream, which are never without there."""
    return replace(config, norm="rms")
