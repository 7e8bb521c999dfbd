"""What a model is, as frozen values: no torch here, so that the command line starts quickly.

Every field names its effect and, where published implementations differ, who uses which value (docs/math.md).
A configuration that cannot work is refused when it is made, with one line that says why.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from hgrn2.layers.config import BoundKind, GLUActivation, MixerConfig, NormKind
from hgrn2.settings import check_literals, refuse

InitKind = Literal["normal", "scaled_normal", "xavier_small"]
LossKind = Literal["auto", "full", "chunked"]
Recompute = Literal["none", "glu", "block"]


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
        refuse(not 0 < self.std < inf, f"init std is {self.std}; it must be positive")


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
        refuse(not 0 < self.norm_eps < inf, f"norm_eps is {self.norm_eps}; it must be positive")

    @property
    def heads(self) -> int:
        """H = D / n for hgru2; 1 for the vector states of HGRN1."""
        return self.width // self.mixer.head_size if self.mixer.kind == "hgru2" else 1
