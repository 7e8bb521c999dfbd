"""`HGRN2Config` and `HGRN1Config`: flash-linear-attention's fields, and beside them every option of ours that it lacks.

A config.json of fla-hub is read as it stands: what it does not name takes the value that flash-linear-attention
computes with (scores times n^-1/2, eps 1e-5 in the output norm). Which field means what is said once, in
`hgrn2.models.convert.fla`; this class only adds to it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hgrn2.errors import UserError
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.convert import fla
from hgrn2.models.hf.saving import HINT, Saved, foreign
from hgrn2.settings import refuse

_ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu", "none": "none"}
_FLA = (
    "vocab_size", "hidden_size", "num_hidden_layers", "expand_ratio", "use_short_conv", "conv_size", "use_lower_bound",
    "hidden_ratio", "intermediate_size", "elementwise_affine", "norm_eps", "tie_word_embeddings", "initializer_range",
)  # fmt: skip


class HGRN2Config(Saved):
    """Settings of an HGRN2 model for transformers.

    Fields up to `initializer_range` are flash-linear-attention's. `num_heads` and `expand_ratio` (n, the size of a
    head) say the same: give either; both must multiply to `hidden_size`. Fields from `mixer` on are ours; None means
    what flash-linear-attention does. They are explained in `hgrn2.ModelConfig` and `hgrn2.MixerConfig`.

    Raises:
        UserError: values that do not fit, fields that nobody knows, variants with softmax attention.

    Example:
        >>> import hgrn2
        >>> hgrn2.HGRN2Config(hidden_size=64, num_hidden_layers=2, num_heads=4).expand_ratio
        16
    """

    model_type = "hgrn2"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the library's name and type)
    auto_classes: ClassVar = {
        "AutoConfig": "HGRN2Config", "AutoModel": "HGRN2Model", "AutoModelForCausalLM": "HGRN2ForCausalLM",
    }  # fmt: skip

    vocab_size: int = 32000
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_heads: int | None = None
    expand_ratio: int | None = None
    use_short_conv: bool = False
    conv_size: int = 4
    use_lower_bound: bool = True
    hidden_ratio: float | None = 4
    intermediate_size: int | None = None
    hidden_act: str = "swish"
    elementwise_affine: bool | None = True
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    mixer: str = "hgru2"
    input_activation: str | None = None
    output_activation: str = "silu"
    mixer_norm: str | None = None
    """Norm of the output; None: rms, without a weight where elementwise_affine is false."""
    mixer_norm_eps: float | None = None
    scale_scores: bool | None = None
    mixer_bias: bool = False
    glu_bias: bool = False
    residual_norm: str = "rms"
    scale_embeddings: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    bound_kind: str = "inclusive"
    """Formula of the lower bounds where use_lower_bound is true."""
    init_kind: str = "normal"
    fused_loss: bool = False
    """With labels, compute the loss without a tensor of all logits; the output's logits are then None."""

    def __post_init__(self, **kwargs: Any) -> None:
        if "rms_norm_eps" in kwargs:  # older files
            self.norm_eps = kwargs.pop("rms_norm_eps")
        for field, only in (("norm_first", True), ("zero_outputs", False)):  # which older files have
            value = kwargs.pop(field, only)
            refuse(value != only, f"{type(self).__name__}: {field} {value} is no longer offered")
        self._agree_on_heads()
        settings = self._read(foreign(type(self), kwargs))
        self.num_heads, self.intermediate_size = settings.heads, settings.glu_width
        super().__post_init__(**kwargs)

    def _agree_on_heads(self) -> None:
        width, heads, size = self.hidden_size, self.num_heads, self.expand_ratio
        if self.mixer != "hgru2":
            self.expand_ratio = 1 if size is None else size
            return
        for name, value in (("hidden_size", width), ("num_heads", heads), ("expand_ratio", size)):
            whole = value is None or (isinstance(value, int) and value >= 1)
            refuse(not whole, f"{name} is {value!r}; it must be a whole number of at least 1")
        if heads is not None and size is not None:
            refuse(heads * size != width, f"num_heads {heads} x expand_ratio {size} is not hidden_size {width}")
        if heads is not None and size is None:
            refuse(width % heads != 0, f"hidden_size {width} does not divide into num_heads {heads}")
            self.expand_ratio = width // heads
        elif size is None:
            self.expand_ratio = 128  # flash-linear-attention's

    def _read(self, extra: dict[str, Any]) -> ModelConfig:
        """What flash-linear-attention's fields say, then ours; `extra` holds fields that no class declares."""
        name = type(self).__name__
        values = {field: getattr(self, field) for field in _FLA}
        values["model_type"] = "hgrn2" if self.mixer == "hgru2" else "hgrn"
        clear = sorted({"decoder_embed_dim", "decoder_layers"} & set(extra))
        refuse(bool(clear), f"{name}: {', '.join(clear)} is of hgru2-pytorch: use `hgrn2 convert hgru2` first")
        base = fla.read_config(extra | values, Path(name), hint=HINT)
        if self.hidden_act not in _ACTIVATIONS:
            raise UserError(
                f"{name}: hidden_act {self.hidden_act!r} is not supported; choose {', '.join(_ACTIVATIONS)}"
            )
        mixer = {
            "kind": self.mixer, "input_activation": self.input_activation, "output_activation": self.output_activation,
            "norm": self.mixer_norm, "norm_eps": self.mixer_norm_eps,
            "scale_scores": self.scale_scores, "bias": self.mixer_bias,
        }  # fmt: skip
        init = InitConfig(kind=self.init_kind, std=base.init.std)  # type: ignore[arg-type]
        return replace(
            base,
            mixer=replace(base.mixer, **{key: value for key, value in mixer.items() if value is not None}),
            glu_activation=_ACTIVATIONS[self.hidden_act],
            glu_bias=self.glu_bias,
            norm=self.residual_norm,
            scale_embeddings=self.scale_embeddings,
            dropout=self.dropout,
            drop_path=self.drop_path,
            lower_bound=self.bound_kind if self.use_lower_bound else "none",
            init=init,
        )

    def to_model_config(self) -> ModelConfig:
        """The same settings as `hgrn2.ModelConfig`, from the fields as they are now."""
        return self._read({})

    @classmethod
    def from_model_config(cls, config: ModelConfig, **more: Any) -> "HGRN2Config":
        """The settings of a model of ours; `more` are fields of transformers, as in `eos_token_id=0`."""
        mixer, bounds = config.mixer, config.lower_bound
        known = ("hgru2", "hgru1", "hgru1_real")
        named = config.named_kinds
        refuse(named not in known, f"a model with {named} has no transformers class here; those of HGRN do")
        kind = HGRN2Config if mixer.kind == "hgru2" else HGRN1Config
        own: dict[str, Any] = {"expand_ratio": mixer.head_size} if mixer.kind == "hgru2" else {}
        own |= {"bos_token_id": None, "eos_token_id": None} | more
        return kind(
            vocab_size=config.vocab_size, hidden_size=config.width, num_hidden_layers=config.layers,
            use_short_conv=mixer.conv_width > 0, conv_size=mixer.conv_width or 4, use_lower_bound=bounds != "none",
            intermediate_size=config.glu_width, elementwise_affine=mixer.norm != "simple_rms",
            hidden_act="swish" if config.glu_activation == "silu" else config.glu_activation,
            norm_eps=config.norm_eps, tie_word_embeddings=config.tie_embeddings, initializer_range=config.init.std,
            mixer=mixer.kind, input_activation=mixer.input_activation, output_activation=mixer.output_activation,
            mixer_norm=mixer.norm, mixer_norm_eps=mixer.norm_eps,
            scale_scores=mixer.scale_scores, mixer_bias=mixer.bias, glu_bias=config.glu_bias,
            residual_norm=config.norm, scale_embeddings=config.scale_embeddings,
            dropout=config.dropout, drop_path=config.drop_path,
            bound_kind="inclusive" if bounds == "none" else bounds, init_kind=config.init.kind,
            **own,
        )  # fmt: skip


class HGRN1Config(HGRN2Config):
    """Settings of an HGRN model: `mixer` hgru1_real (flash-linear-attention's, model_type hgrn) or hgru1 (complex)."""

    model_type = "hgrn"
    auto_classes: ClassVar = {
        "AutoConfig": "HGRN1Config", "AutoModel": "HGRN1Model", "AutoModelForCausalLM": "HGRN1ForCausalLM",
    }  # fmt: skip
    mixer: str = "hgru1_real"
