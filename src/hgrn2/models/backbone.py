"""The stack of blocks with its lower bounds: the only loop over layers, for training, prefill and one-token steps."""

import torch
from torch import Tensor, nn

from hgrn2.layers.block import Block
from hgrn2.layers.gates import lower_bounds
from hgrn2.layers.norm import Norm
from hgrn2.layers.state import ModelState
from hgrn2.models.config import ModelConfig


class Backbone(nn.Module):
    """L pre-norm blocks and a final norm; embeddings and heads belong to the models around it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        learned = config.lower_bound != "none"
        self.lower_bounds = nn.Parameter(torch.empty(config.layers, config.width)) if learned else None
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.mixer,
                glu_width=config.glu_width,
                glu_activation=config.glu_activation,
                glu_bias=config.glu_bias,
                norm=config.norm,
                norm_eps=config.norm_eps,
                dropout=config.dropout,
            )
            for _ in range(config.layers)
        )
        self.norm = Norm(config.norm, config.width, config.norm_eps)

    def bounds(self) -> list[Tensor | None]:
        """γ of every layer, [D] float32; None where it is zero by definition (the first layer, or no bounds at all)."""
        if self.lower_bounds is None:
            return [None] * self.config.layers
        return [None, *lower_bounds(self.lower_bounds, self.config.lower_bound)[1:].unbind(0)]

    def zeros(self, batch: int) -> ModelState:
        """The state of `batch` sequences before their first token."""
        mixers = [block.mixer for block in self.blocks if isinstance(block, Block)]
        weight = mixers[0].in_proj.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return ModelState(tuple(mixer.zeros(batch, weight.device, dtype) for mixer in mixers))

    def forward(
        self,
        x: Tensor,
        state: ModelState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = True,
    ) -> tuple[Tensor, ModelState | None]:
        """x [B,T,D] -> (norm of the last block's output [B,T,D], state of every block)."""
        finals = []
        for n, (block, bound) in enumerate(zip(self.blocks, self.bounds(), strict=True)):
            start = None if state is None else state.layers[n]
            x, final = block(x, bound, start, cu_seqlens=cu_seqlens, output_state=output_state)
            finals.append(final)
        return self.norm(x), ModelState(tuple(finals)) if output_state else None
