"""Settings of the layers, as frozen values: no torch here, so that the command line starts quickly."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from hgrn2.settings import check_literals, refuse

MixerKind = Literal["hgru2", "hgru1", "hgru1_real"]
NormKind = Literal["rms", "layer", "simple_rms", "head_rms"]
InputActivation = Literal["none", "silu"]
OutputActivation = Literal["silu", "sigmoid"]
GLUActivation = Literal["none", "silu", "gelu"]
BoundKind = Literal["inclusive", "exclusive", "none"]


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
        refuse(not 0 < self.norm_eps < inf, f"norm_eps is {self.norm_eps}; it must be positive")
        refuse(self.conv_width < 0 or self.conv_width == 1, f"conv_width is {self.conv_width}; use 0 or at least 2")
        refuse(self.kind != "hgru2" and self.norm == "head_rms", "norm head_rms needs heads, which only hgru2 has")
        refuse(self.kind != "hgru2" and self.conv_width > 0, f"conv_width is offered for hgru2, not for {self.kind}")
        refuse(self.kind != "hgru2" and self.scale_scores, f"scale_scores is offered for hgru2, not for {self.kind}")
        refuse(self.kind == "hgru2" and not self.norm_first, "norm_first=false is offered for hgru1, not for hgru2")
