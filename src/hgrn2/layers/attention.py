"""Softmax attention: the baseline whose state grows with the text, or which sees a whole sequence at once.

    [q, k, v] = x W_in      y_t = Σ_s softmax_s(R_t q_t · R_s k_s / √n) v_s W_out

The sum runs over s ≤ t, or with direction bidirectional over all tokens. R_t is the rotary position (arXiv 2104.09864),
which turns the pair of channels (j, j + n/2) of a head by the angle t / 10000^(2j/n), or nothing: then attention sees a
set, and order only in what was added to its tokens.
"""

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.directions import Shape, check_shape, no_state
from hgrn2.layers.short_conv import short_conv
from hgrn2.layers.state import LayerState

ROTARY_BASE = 10_000.0


class Attention(nn.Module):
    """D -> D, H = D / n heads of n; 4 D² weights. The state is every key and value so far, [B,S,2,H,n].

    With direction bidirectional every token sees every other one, and no state can be carried. Pictures have no
    direction of their own here: a picture is its tokens, row by row, with positions that tell rows and columns.
    """

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width, self.heads = config, width, width // config.head_size
        self.causal = config.direction == "causal"
        self.projections = (width, width, width)
        self.in_proj = nn.Linear(width, sum(self.projections), bias=config.bias)
        self.conv = nn.Parameter(torch.empty(3 * width, config.conv_width)) if config.conv_width else None
        self.out_proj = nn.Linear(width, width, bias=config.bias)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token: no key, no value."""
        n, taps = self.config.head_size, self.config.conv_width - 1
        conv = torch.zeros(batch, taps, 3 * self.width, device=device, dtype=dtype) if taps > 0 else None
        return LayerState(torch.zeros(batch, 0, 2, self.heads, n, device=device, dtype=dtype), conv)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: LayerState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        keep: Tensor | None = None,
        shape: Shape | None = None,
        output_state: bool = True,
        inplace: bool = False,
    ) -> tuple[Tensor, LayerState | None]:
        """x [B,T,D], state with S tokens -> (y [B,T,D], state with S + T).

        Tokens whose `keep` [B,T] is False are seen by nobody and counted by no position; their y means nothing.

        Raises:
            UserError: packed documents, a state that should stay as large as it is, padding together with a state, a
                shape, as of every mixer that reads a line of tokens.
        """
        check_shape(self.config, x.shape[1], shape)
        self._check(lower_bound, state, cu_seqlens, keep, output_state, inplace)
        past = None if state is None else state.conv
        mixed, conv_state = short_conv(self.in_proj(x), self.conv, past, None, keep, output_state=output_state)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in mixed.chunk(3, -1))
        seen = 0 if state is None else state.recurrent.shape[1]
        if self.config.rotary:
            if keep is None:
                positions = torch.arange(seen, seen + x.shape[1], device=x.device).unsqueeze(0)
            else:
                positions = (keep.cumsum(1) - 1).clamp_min(0)
            q, k = rotate(q, positions), rotate(k, positions)
        if state is not None:
            before_k, before_v = state.recurrent.to(k.dtype).unbind(2)
            k, v = torch.cat((before_k, k), 1), torch.cat((before_v, v), 1)
        mask = self._visible(x.shape[1], seen, keep, x.device)
        y = nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask,
            is_causal=mask is None and self.causal and x.shape[1] > 1,
        )  # fmt: skip
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y, LayerState(torch.stack((k, v), 2), conv_state) if output_state else None

    def _visible(self, length: int, seen: int, keep: Tensor | None, device: torch.device) -> Tensor | None:
        """Who sees whom, [T,S+T], [B,1,T,T] or, the same for all who look, [B,1,1,T]; None where the operator's own
        rule is enough."""
        if keep is None and (seen == 0 or length == 1):
            return None
        if keep is not None and not self.causal:
            # T² numbers a sequence would be a gigabyte for long ones. Of padding alone everything is seen: a row
            # without any key has no softmax.
            return (keep | ~keep.any(1, keepdim=True))[:, None, None]
        rows = torch.arange(seen, seen + length, device=device).unsqueeze(1)
        columns = torch.arange(seen + length, device=device)
        visible = columns <= rows
        if keep is None:
            return visible
        # Padding sees at least itself: a row without any key has no softmax.
        return (visible & keep[:, None, None, :]) | (columns == rows)

    def _check(
        self, lower_bound: Tensor | None, state: LayerState | None, cu_seqlens: Tensor | None, keep: Tensor | None,
        output_state: bool, inplace: bool,
    ) -> None:  # fmt: skip
        assert lower_bound is None, "settings with bounds are refused for attention"
        if cu_seqlens is not None:
            raise UserError("attention is offered without packed documents; pad them and give keep")
        if inplace:
            raise UserError("the state of attention grows with every token and cannot be overwritten in place")
        if keep is not None and (state is not None or output_state):
            raise UserError("attention takes padding only where no state is carried")
        if not self.causal and (state is not None or output_state):
            raise UserError(no_state(self.config))


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x [B,T,H,n] turned by its positions [B or 1,T]; angles in float32 (float64 for float64)."""
    half = x.shape[-1] // 2
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    speed = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=work) / half)
    angle = positions.to(work)[:, :, None, None] * speed
    a, b = x.to(work).split(half, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1).to(x.dtype)
