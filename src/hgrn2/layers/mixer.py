"""What a block asks of its token mixer, whatever kind it is; `hgrn2.layers.kinds` says in numbers what each kind is."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hgrn2.layers.config import MixerConfig


@runtime_checkable
class Mixer(Protocol):
    """A module from tokens [B,T,D] to tokens [B,T,D] that may carry a state."""

    config: MixerConfig

    @property
    def out_proj(self) -> nn.Linear:
        """The projection that writes to the residual stream."""
        ...

    def start(self) -> None:
        """Give parameters of the mixer's own kind (taps, phases, rates, steps) their starting values, in place, without
        gradients; matrices, biases and norms have theirs by then."""
        ...

    def zeros(self, batch: int, device: Any = None, dtype: torch.dtype = torch.float32) -> Any:
        """The state of `batch` sequences before their first token, a `MixerState`; `UserError` for a dtype that states
        of this kind do not have."""
        ...

    def state_dtype(self, weights: torch.dtype) -> torch.dtype:
        """The dtype in which a model with such weights keeps this state."""
        ...

    def forward(
        self, x: Tensor, lower_bound: Tensor | None = None, state: Any = None, *, cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None, output_state: bool = True, inplace: bool = False,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """x [B,T,D] -> (y [B,T,D], the state after the last token or None where it is not wanted).

        Args:
            lower_bound: γ [D] of the forget gate; None for kinds without lower bounds.
            state: of B sequences, or of the N packed ones.
            cu_seqlens: offsets [N+1] of packed sequences (B = 1).
            padding_mask: [B,T] bool; a token that is False leaves the state and other tokens alone, its y means
                nothing.
            inplace: the state given may be overwritten; go on with the one returned.
        """
        ...

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: Tensor | None = None) -> Tensor | None:
        """ln f [B,T,·] of every forget gate, float32; None for kinds without gates.

        `past`: the inputs of the short convolution before x, as a state has them; None where sequences start at x.
        """
        ...
