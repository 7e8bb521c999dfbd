"""The language model of hgru2-pytorch (by the authors of HGRN2): its config.json and state dict.

Fused projection in the order input, output gate, forget, as ours; GLU without activation; norms without weights
(SimpleRMSNorm, eps 1e-6) or LayerNorm (eps 1e-5); scores not scaled.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hgrn2.layers.config import LowerBoundKind, MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.convert.fields import Fields
from hgrn2.models.convert.rules import Part, Rule
from hgrn2.models.tensor_files import Weights

_ACTIVATIONS = {"none": "none", "silu": "silu", "swish": "silu"}
_FIRST_GLU, _HEAD = "model.layers.0.channel_mixer.l1.weight", "lm_head.weight"


def read_config(
    values: dict[str, Any],
    path: Path,
    weights: Weights,
    bounds: LowerBoundKind = "inclusive",
    ignore: Collection[str] = (),
) -> ModelConfig:
    """Our settings for a config.json with decoder_* fields.

    Args:
        weights: the file leaves the GLU's width open (glu_dim -1), and a tied head shows in its absence only.
        bounds: the formula of the lower bounds, which no field names: inclusive is the language model's.
    """
    fields = Fields(values, path)
    fields.choice("model_type", "hgrn2", {"hgrn2": None})
    width, hidden = fields.size("decoder_embed_dim", 1024), fields.get("glu_dim", int, -1, optional=True)
    if (hidden is None or hidden < 1) and _FIRST_GLU in weights.files:
        hidden = (weights.shape(_FIRST_GLU) or [0])[0]
    norm, eps = fields.choice(
        "norm_type", "simplermsnorm", {"simplermsnorm": ("simple_rms", 1e-6), "layernorm": ("layer", 1e-5)}
    )
    bias = fields.get("bias", bool, False)
    tied = fields.get("tie_word_embeddings", bool, None, optional=True)
    with fields.named():
        config = ModelConfig(
            vocab_size=fields.size("vocab_size", 50272),
            width=width,
            layers=fields.size("decoder_layers", 24),
            mixer=MixerConfig(
                head_size=fields.size("expand_ratio", 2),
                input_activation=fields.choice("in_act", "none", _ACTIVATIONS),
                output_activation=fields.choice("out_act", "silu", {
                    "silu": "silu", "swish": "silu", "sigmoid": "sigmoid",
                }),
                norm=norm,
                norm_eps=eps,
                bias=bias,
            ),
            glu_width=hidden or 0,
            glu_activation=fields.choice("glu_act", "none", _ACTIVATIONS | {"gelu": "gelu"}),
            glu_bias=bias,
            norm=norm,
            norm_eps=eps,
            tie_embeddings=_HEAD not in weights.files if tied is None else tied,
            scale_embeddings=not fields.get("no_scale_embedding", bool, True),
            lower_bound=bounds,
            init=InitConfig(std=fields.get("init_std", float, 0.02)),
        )  # fmt: skip
    fields.finish((), ignore)
    return config


def rules(config: ModelConfig) -> list[Rule]:
    """Its state dict."""
    width, hidden = config.width, config.glu_width
    matrix = (config.vocab_size, width)
    named = [Rule("embedding.weight", (Part("model.embed_tokens.weight", matrix),))]
    if config.lower_bound != "none":
        named += [Rule("backbone.lower_bounds", (Part("model.lower_bounds", (config.layers, width)),))]
    for layer in range(config.layers):
        ours, theirs = f"backbone.blocks.{layer}.", f"model.layers.{layer}."
        named += [
            *_linear(config, ours + "mixer.in_proj", 3 * width, width, theirs + "token_mixer.in_proj"),
            *_linear(config, ours + "mixer.out_proj", width, width, theirs + "token_mixer.out_proj"),
            *_linear(
                config, ours + "glu.in_proj", hidden, width, theirs + "channel_mixer.l1", theirs + "channel_mixer.l2"
            ),
            *_linear(config, ours + "glu.out_proj", width, hidden, theirs + "channel_mixer.l3"),
            *_norm(config, ours + "mixer.norm", theirs + "token_mixer.norm"),
            *_norm(config, ours + "mixer_norm", theirs + "token_norm"),
            *_norm(config, ours + "glu_norm", theirs + "channel_norm"),
        ]
    named += _norm(config, "backbone.norm", "model.final_norm")
    if not config.tie_embeddings:
        named += [Rule("head.weight", (Part(_HEAD, matrix),))]
    return named


def _linear(config: ModelConfig, ours: str, rows: int, columns: int, *theirs: str) -> list[Rule]:
    found = [Rule(ours + ".weight", tuple(Part(name + ".weight", (rows, columns)) for name in theirs))]
    if config.mixer.bias:
        found += [Rule(ours + ".bias", tuple(Part(name + ".bias", (rows,)) for name in theirs))]
    return found


def _norm(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    if config.norm == "simple_rms":
        return []
    return [Rule(f"{ours}.{name}", (Part(f"{theirs}.{name}", (config.width,)),)) for name in ("weight", "bias")]
