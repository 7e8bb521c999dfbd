"""What a model is, as frozen values: no torch here, so that the command line starts quickly.

Every field names its effect and, where published implementations differ, who uses which value (docs/math.md).
A configuration that cannot work is refused when it is made, with one line that says why.
"""

from dataclasses import dataclass, field
from typing import Literal

from hgrn2.settings import check_literals, refuse

MixerKind = Literal["hgru2", "hgru1", "hgru1_real"]
NormKind = Literal["rms", "layer", "simple_rms", "head_rms"]
InputActivation = Literal["none", "silu"]
OutputActivation = Literal["silu", "sigmoid"]
GLUActivation = Literal["none", "silu", "gelu"]
BoundKind = Literal["inclusive", "exclusive", "none"]
InitKind = Literal["normal", "scaled_normal", "xavier_small"]


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """How a block mixes time: the recurrent unit and the options in which published versions differ."""

    kind: MixerKind = "hgru2"
    """hgru2: matrix state by outer product; hgru1: complex vector state; hgru1_real: real vector state."""
    head_size: int = 128
    """n, the state expansion of hgru2: keys and values of one head. hgru1 has none and ignores it."""
    input_activation: InputActivation = "none"
    """On i_t. none: paper figure, language models; silu: the hgru2 modules for images and long range, and HGRN1."""
    output_activation: OutputActivation = "silu"
    """On o_t. silu: language models; sigmoid: the hgru2 modules."""
    norm: NormKind = "rms"
    """Norm of the read-out over the full width (head_rms: each head by itself)."""
    norm_eps: float = 1e-5
    norm_first: bool = True
    """HGRN1 only: normalise h before the product with the output gate (its code) or after it (its README)."""
    scale_scores: bool = False
    """Multiply the read-out by n^-1/2 (flash-linear-attention does, the paper does not)."""
    bias: bool = False
    """Biases in the projections (the hgru2 modules and HGRN1 have them)."""
    conv_width: int = 0
    """Width of a causal depthwise convolution on the three projections, no activation; 0 leaves it out."""

    def __post_init__(self) -> None:
        check_literals(self)
        refuse(self.head_size < 1, f"head_size is {self.head_size}; it must be at least 1")
        refuse(self.norm_eps <= 0, f"norm_eps is {self.norm_eps}; it must be positive")
        refuse(self.conv_width < 0 or self.conv_width == 1, f"conv_width is {self.conv_width}; use 0 or at least 2")
        refuse(self.kind != "hgru2" and self.norm == "head_rms", "norm head_rms needs heads, which only hgru2 has")
        refuse(self.kind != "hgru2" and self.conv_width > 0, f"conv_width is offered for hgru2, not for {self.kind}")


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Initial weights (models/init.py holds the code and the sources)."""

    kind: InitKind = "normal"
    """normal: std everywhere; scaled_normal: projections that write to the residual stream divided by sqrt(2 layers);
    xavier_small: token mixers Xavier-uniform with gain 2^-2.5, the rest normal."""
    std: float = 0.02
    zero_outputs: bool = False
    """Start the projections that write to the residual stream at zero."""

    def __post_init__(self) -> None:
        check_literals(self)
        refuse(self.std <= 0, f"init std is {self.std}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A stack of pre-norm blocks (token mixer, GLU) between a token embedding and a head."""

    vocab_size: int
    width: int
    """D, the residual width."""
    layers: int
    """L, the number of blocks."""
    mixer: MixerConfig = field(default_factory=MixerConfig)
    glu_width: int
    """Hidden width of the gated linear unit."""
    glu_activation: GLUActivation = "silu"
    """silu: flash-linear-attention; none (a plain product): HGRN1 and the hgru2 language model."""
    glu_bias: bool = False
    norm: NormKind = "rms"
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(width), as HGRN1's code base does."""
    dropout: float = 0.0
    """On the embedding and on what each mixer and GLU adds to the residual stream."""
    lower_bound: BoundKind = "inclusive"
    """Bounds of the forget gate from a softmax over layers. inclusive: cumulative sum minus the first row (language
    models); exclusive: sum of the rows below (HGRN1's formula, images, long range); none: no bound."""
    init: InitConfig = field(default_factory=InitConfig)

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("vocab_size", "width", "layers", "glu_width"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.mixer.kind == "hgru2":
            refuse(
                self.width % self.mixer.head_size != 0,
                f"width {self.width} does not divide into heads of head_size {self.mixer.head_size}",
            )
        refuse(not 0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in [0, 1)")
        refuse(self.norm == "head_rms", "norm head_rms is offered inside the mixer only")
        refuse(self.norm_eps <= 0, f"norm_eps is {self.norm_eps}; it must be positive")

    @property
    def heads(self) -> int:
        """H = D / n for hgru2; 1 for the vector states of HGRN1."""
        return self.width // self.mixer.head_size if self.mixer.kind == "hgru2" else 1
