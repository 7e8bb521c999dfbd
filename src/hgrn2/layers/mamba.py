"""Mamba (arXiv 2312.00752): a state of N numbers per channel, whose step sizes, inputs and outputs depend on the data.

    [x, z] = u W_in        x = silu(conv(x) + c)        [s, w, r] = x W_x        Δ = softplus(s W_Δ + b)
    h_t[e,n] = exp(Δ_t[e] a[e,n]) h_{t-1}[e,n] + Δ_t[e] x_t[e] w_t[n]            a = -exp(A)
    y = ((Σ_n r[n] h[·,n] + d ⊙ x) ⊙ act_o(z)) W_out

on E = `expand` · D channels, with s of rank D / 16. A published block is this mixer alone, without a gated linear unit
behind it (`glu_width=0`), and so there are twice as many of them.
"""

import torch
from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.kinds import inner_width, states_of, step_rank
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.state import LayerState
from hgrn2.layers.steps import start_steps, start_taps
from hgrn2.layers.terms import Terms
from hgrn2.ops.backend import work_dtype


class Mamba(nn.Module):
    """D -> D, state [B,E,N]; about 6 D² weights for E = 2 D."""

    operators: Operators = WHOLE

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.inner, self.states, self.rank = inner_width(width, config), states_of(config), step_rank(width)
        self.projections = (self.inner, self.inner)
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=config.bias)
        taps = config.conv_width
        self.conv = nn.Parameter(torch.empty(self.inner, taps)) if taps else None
        self.conv_bias = nn.Parameter(torch.empty(self.inner)) if taps else None
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * self.states, bias=False)
        self.step_proj = nn.Linear(self.rank, self.inner, bias=True)
        self.log_decay = nn.Parameter(torch.empty(self.inner, self.states))
        self.skip = nn.Parameter(torch.empty(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=config.bias)
        self.output_activation = nn.SiLU() if config.output_activation == "silu" else nn.Sigmoid()

    def start(self) -> None:
        """As published: a[e,n] = -(n + 1), d = 1, Δ between `step_min` and `step_max` where its input is zero."""
        start_taps(self.conv, self.conv_bias)
        rates = torch.arange(1, self.states + 1, device=self.log_decay.device, dtype=torch.float64)
        self.log_decay.copy_(rates.log().expand_as(self.log_decay))
        nn.init.ones_(self.skip)
        nn.init.uniform_(self.step_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        start_steps(self.step_proj.bias, self.config.step_min, self.config.step_max)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token, float32 or float64."""
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"states of {self.config.kind} are float32, not {str(dtype).removeprefix('torch.')}")
        taps = self.config.conv_width - 1
        conv = torch.zeros(batch, taps, self.inner, device=device, dtype=dtype) if taps > 0 else None
        return LayerState(torch.zeros(batch, self.inner, self.states, device=device, dtype=dtype), conv)

    def state_dtype(self, weights: torch.dtype) -> torch.dtype:
        """float32, float64 for float64: a state is a sum over a whole text."""
        return work_dtype(weights)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: LayerState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        output_state: bool = True,
        inplace: bool = False,
    ) -> tuple[Tensor, LayerState | None]:
        """x [B,T,D], state of B (or N packed) sequences -> (y [B,T,D], state after the last token).

        `lower_bound` is that of other mixers and must be None. Tokens whose `padding_mask` [B,T] is False leave the
        state exactly as it was; their y means nothing. With `inplace` the state given is overwritten and returned.
        """
        assert lower_bound is None, "settings with lower bounds are refused for mamba"
        mixed, gate = self.in_proj(x).split(self.projections, -1)
        past = None if state is None else state.conv
        mixed, conv_state = self._convolve(mixed, past, cu_seqlens, padding_mask, output_state)
        step, write, read = self._selected(mixed, padding_mask)
        decay = -self.log_decay.to(step.dtype).exp()
        start = None if state is None else state.recurrent
        if x.shape[1] == 1 and start is not None and cu_seqlens is None and not torch.is_grad_enabled():
            y, final = ops.selective_step(
                mixed[:, 0], step[:, 0], decay, write[:, 0], read[:, 0], state=start, inplace=inplace
            )
            y = y.unsqueeze(1)
        else:
            y, final = self.operators.selective_scan(
                mixed, step, decay, write, read, state=start, cu_seqlens=cu_seqlens, output_final_state=output_state
            )
        y = y + self.skip.to(mixed.dtype) * mixed
        y = self.out_proj(y * self.output_activation(gate))
        found = LayerState(final, conv_state) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: Tensor | None = None) -> Tensor:
        """Δ a, the logarithm of the decay of every number of the state [B,T,E*N]; `past` as in `LayerState.conv`."""
        mixed, _ = self._convolve(self.in_proj(x)[..., : self.inner], past, None, None, False)
        step, _, _ = self._selected(mixed, None)
        return (step.unsqueeze(-1) * -self.log_decay.to(step.dtype).exp()).flatten(2)

    def terms(self, x: Tensor, lower_bound: Tensor | None) -> Terms:
        """The recurrence over x [B,T,D] as a sum over tokens, of sequences that start at x, without d x_t: every
        channel is a head of N keys and one value."""
        mixed, _ = self._convolve(self.in_proj(x)[..., : self.inner], None, None, None, False)
        step, write, read = self._selected(mixed, None)
        step = step.unsqueeze(-1)
        read, write = (part.to(step.dtype).unsqueeze(2) for part in (read, write))
        log_f = step * -self.log_decay.to(step.dtype).exp()
        return Terms(read.expand_as(log_f), step * write, mixed.to(step.dtype).unsqueeze(-1), log_f)

    def _convolve(
        self, x: Tensor, past: Tensor | None, cu_seqlens: Tensor | None, padding_mask: Tensor | None, output_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Convolution, bias and activation; zeros at padding."""
        x, conv_state = self.operators.short_conv(
            x, self.conv, past, cu_seqlens, padding_mask, output_state=output_state
        )
        x = nn.functional.silu(x if self.conv_bias is None else x + self.conv_bias.to(x.dtype))
        return x if padding_mask is None else x.masked_fill(~padding_mask.unsqueeze(-1), 0), conv_state

    def _selected(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Δ [B,T,E] in float32 (float64 for float64), 0 at padding; w and r [B,T,N]."""
        step, write, read = self.x_proj(x).split((self.rank, self.states, self.states), -1)
        step = self.step_proj(step)
        step = nn.functional.softplus(step.to(work_dtype(step.dtype)))
        return step if padding_mask is None else step.masked_fill(~padding_mask.unsqueeze(-1), 0), write, read
