"""The pre-norm residual pair: x += mixer(norm x); x += GLU(norm x), the second not in every model. The only residual
code."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hgrn2.layers.config import KINDS, GLUActivation, MixerConfig, NormKind
from hgrn2.layers.directions import Directional, Shape
from hgrn2.layers.glu import GLU
from hgrn2.layers.norm import Norm
from hgrn2.layers.reading import Dropout, DropPath
from hgrn2.layers.state import MixerState


def token_mixer(width: int, config: MixerConfig) -> Any:
    """The `Mixer` that the settings name."""
    if config.direction != "causal" and config.kind != "attention":  # attention only needs another mask
        return Directional(width, config)
    module, _, name = KINDS[config.kind].made_by.partition(":")
    return getattr(import_module(module), name)(width, config)


class Block(nn.Module):
    """One layer of the stack."""

    def __init__(
        self, width: int, mixer: MixerConfig, *, glu_width: int, glu_activation: GLUActivation, glu_bias: bool,
        norm: NormKind, norm_eps: float, dropout: float, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recompute_glu = False
        self.mixer_norm = Norm(norm, width, norm_eps)
        self.mixer = token_mixer(width, mixer)
        self.glu_norm = Norm(norm, width, norm_eps) if glu_width else None
        self.glu = GLU(width, glu_width, glu_activation, bias=glu_bias) if glu_width else None
        self.dropout = Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None,
        state: MixerState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        shape: Shape | None = None,
        output_state: bool = True,
        inplace: bool = False,
    ) -> tuple[Tensor, MixerState | None]:
        """x [B,T,D] -> (x [B,T,D], state); `padding_mask` [B,T] is False where a token must leave the state alone,
        `shape` is that of an image, for mixers that read one."""
        two_d = {"shape": shape} if self.mixer.config.is_2d else {}
        mixed, state = self.mixer(
            self.mixer_norm(x, padding_mask), lower_bound, state, cu_seqlens=cu_seqlens, padding_mask=padding_mask,
            output_state=output_state,
            inplace=inplace, **two_d,
        )  # fmt: skip
        x = x + self.drop_path(self.dropout(mixed))
        if self.glu is None:
            return x, state
        if self.recompute_glu and torch.is_grad_enabled():
            return x + recomputed(self._channels, x, padding_mask, random=self.random), state
        return x + self._channels(x, padding_mask), state

    @property
    def random(self) -> bool:
        """Whether a training step draws random numbers here."""
        return self.dropout.p > 0 or self.drop_path.rate > 0

    def _channels(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        assert self.glu is not None
        assert self.glu_norm is not None
        return self.drop_path(self.dropout(self.glu(self.glu_norm(x, padding_mask))))


def recomputed(function: Callable[..., Any], *arguments: Any, random: bool, **options: Any) -> Any:
    """Call a part of the model that keeps nothing for its backward but its arguments, and runs again there.

    Args:
        random: the part draws random numbers, and must draw the same ones again.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random, **options)
