"""The pre-norm residual pair: x += mixer(norm x); x += GLU(norm x). The only residual code."""

from torch import Tensor, nn

from hgrn2.layers.config import GLUActivation, MixerConfig, NormKind
from hgrn2.layers.glu import GLU
from hgrn2.layers.hgru1 import HGRU1
from hgrn2.layers.hgru2 import HGRU2
from hgrn2.layers.norm import Norm
from hgrn2.layers.state import LayerState


def token_mixer(width: int, config: MixerConfig) -> HGRU2 | HGRU1:
    """The mixer that the settings name."""
    return HGRU2(width, config) if config.kind == "hgru2" else HGRU1(width, config)


class Block(nn.Module):
    """One layer of the stack."""

    def __init__(
        self, width: int, mixer: MixerConfig, *, glu_width: int, glu_activation: GLUActivation, glu_bias: bool,
        norm: NormKind, norm_eps: float, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mixer_norm = Norm(norm, width, norm_eps)
        self.mixer = token_mixer(width, mixer)
        self.glu_norm = Norm(norm, width, norm_eps)
        self.glu = GLU(width, glu_width, glu_activation, bias=glu_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None,
        state: LayerState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = True,
    ) -> tuple[Tensor, LayerState | None]:
        """x [B,T,D] -> (x [B,T,D], state)."""
        mixed, state = self.mixer(
            self.mixer_norm(x), lower_bound, state, cu_seqlens=cu_seqlens, output_state=output_state
        )
        x = x + self.dropout(mixed)
        return x + self.dropout(self.glu(self.glu_norm(x))), state
