"""The channel mixer: a gated linear unit, (act(x W_1) ⊙ x W_2) W_3 with W_1 and W_2 in one projection."""

from torch import Tensor, nn

from hgrn2.layers.config import GLUActivation
from hgrn2.ops.gated_unit import gated_unit


class GLU(nn.Module):
    """D -> D through a hidden width m; 3 D m weights. The first m rows of `in_proj` are the activated half."""

    def __init__(self, width: int, hidden: int, activation: GLUActivation, *, bias: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 2 * hidden, bias=bias)
        self.activation: GLUActivation = activation
        self.out_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.out_proj(gated_unit(self.in_proj(x), self.activation))
