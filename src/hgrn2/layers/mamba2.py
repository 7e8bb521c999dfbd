"""Mamba-2 (arXiv 2405.21060): a matrix state whose heads fade as a whole, with keys and queries that heads share.

    [z, x, w, r, s] = u W_in       [x, w, r] = silu(conv([x, w, r]) + c)       Δ = softplus(s + b)       a = -exp(A)
    S_t = exp(Δ_t a) S_{t-1} + w_t ⊗ (Δ_t x_t)        y = norm((r_t S_t + d x_t) ⊙ act_o(z)) W_out

on E = `expand` · D channels in H = E / n heads with n = `head_size`; Δ, a and d are one number a head, w and r have N =
`state_size` channels for each of `groups` groups of heads. As linear attention: r is the query, w the key, Δ x the
value. A published block is this mixer alone, without a gated linear unit behind it (`glu_width=0`).
"""

import torch
from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.kinds import inner_width, states_of
from hgrn2.layers.norm import Norm
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.state import LayerState
from hgrn2.layers.steps import start_steps, start_taps
from hgrn2.layers.terms import Terms
from hgrn2.ops.backend import work_dtype

MOST_DECAY = 16.0
"""a of a head starts evenly between -1 and minus this, as published."""


class Mamba2(nn.Module):
    """D -> D, state [B,H,N,n]; about 6 D² weights for E = 2 D."""

    operators: Operators = WHOLE

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.inner, self.states, self.groups = inner_width(width, config), states_of(config), config.groups
        self.heads = self.inner // config.head_size
        shared = self.groups * self.states
        self.convolved = self.inner + 2 * shared
        self.projections = (self.inner, self.convolved, self.heads)
        self.in_proj = nn.Linear(width, sum(self.projections), bias=config.bias)
        taps = config.conv_width
        self.conv = nn.Parameter(torch.empty(self.convolved, taps)) if taps else None
        self.conv_bias = nn.Parameter(torch.empty(self.convolved)) if taps else None
        self.step_bias = nn.Parameter(torch.empty(self.heads))
        self.log_decay = nn.Parameter(torch.empty(self.heads))
        self.skip = nn.Parameter(torch.empty(self.heads))
        grouped = config.norm == "rms" and self.groups > 1  # the published norm is that of each group
        kind, parts = ("head_rms", self.groups) if grouped else (config.norm, self.heads)
        self.norm = Norm(kind, self.inner, config.norm_eps, heads=parts)
        self.out_proj = nn.Linear(self.inner, width, bias=config.bias)
        self.output_activation = nn.SiLU() if config.output_activation == "silu" else nn.Sigmoid()

    def start(self) -> None:
        """As published: a between -1 and -16, d = 1, Δ between `step_min` and `step_max` where its input is zero."""
        start_taps(self.conv, self.conv_bias)
        self.log_decay.copy_(torch.empty_like(self.log_decay, dtype=torch.float64).uniform_(1, MOST_DECAY).log())
        nn.init.ones_(self.skip)
        start_steps(self.step_bias, self.config.step_min, self.config.step_max)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token; dtype as in `HGRU2.zeros`."""
        taps, conv_dtype = self.config.conv_width - 1, torch.float64 if dtype == torch.float64 else torch.float32
        conv = torch.zeros(batch, taps, self.convolved, device=device, dtype=conv_dtype) if taps > 0 else None
        shape = (batch, self.heads, self.states, self.config.head_size)
        return LayerState(torch.zeros(shape, device=device, dtype=dtype), conv)

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
        assert lower_bound is None, "settings with lower bounds are refused for mamba2"
        gate, mixed, step = self.in_proj(x).split(self.projections, -1)
        past = None if state is None else state.conv
        mixed, conv_state = self._convolve(mixed, past, cu_seqlens, padding_mask, output_state)
        step = self._steps(step, padding_mask)
        values, *parts = self._parts(mixed, step)
        start = None if state is None else state.recurrent
        if x.shape[1] == 1 and start is not None and cu_seqlens is None and not torch.is_grad_enabled():
            y, final = ops.gated_outer_step(*(part[:, 0] for part in parts), state=start, inplace=inplace)
            y = y.unsqueeze(1)
        else:
            y, final = self.operators.gated_outer_scan(
                *parts, state=start, cu_seqlens=cu_seqlens, output_final_state=output_state
            )
        y = (y + self.skip.to(y.dtype).unsqueeze(-1) * values).flatten(2)
        y = self.out_proj(self.norm(y * self.output_activation(gate)))
        found = LayerState(final, conv_state) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: Tensor | None = None) -> Tensor:
        """Δ a, the logarithm of the decay of every head [B,T,H]; no convolution is before these gates."""
        step = self._steps(self.in_proj(x)[..., -self.heads :], None)
        return step * -self.log_decay.to(step.dtype).exp()

    def terms(self, x: Tensor, lower_bound: Tensor | None) -> Terms:
        """The recurrence over x [B,T,D] as a sum over tokens, of sequences that start at x, without d x_t."""
        _, mixed, step = self.in_proj(x).split(self.projections, -1)
        mixed, _ = self._convolve(mixed, None, None, None, False)
        step = self._steps(step, None)
        return Terms(*self._parts(mixed.to(step.dtype), step)[1:])

    def _convolve(
        self, x: Tensor, past: Tensor | None, cu_seqlens: Tensor | None, padding_mask: Tensor | None, output_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Convolution, bias and activation; zeros at padding."""
        x, conv_state = self.operators.short_conv(
            x, self.conv, past, cu_seqlens, padding_mask, output_state=output_state
        )
        x = nn.functional.silu(x if self.conv_bias is None else x + self.conv_bias.to(x.dtype))
        return x if padding_mask is None else x.masked_fill(~padding_mask.unsqueeze(-1), 0), conv_state

    def _steps(self, step: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Δ [B,T,H] in float32 (float64 for float64), 0 at padding."""
        work = work_dtype(step.dtype)
        step = nn.functional.softplus(step.to(work) + self.step_bias.to(work))
        return step if padding_mask is None else step.masked_fill(~padding_mask.unsqueeze(-1), 0)

    def _parts(self, mixed: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x [B,T,H,n], and r, w [B,T,H,N], Δ x and log f of the scan; what heads share, and the one gate of all
        channels of a head, are views without memory of their own."""
        shared = self.groups * self.states
        x, write, read = mixed.split((self.inner, shared, shared), -1)
        x = x.unflatten(-1, (self.heads, -1))
        of_heads = (*step.shape, self.states)
        read, write = (
            part.unflatten(-1, (self.groups, 1, -1)).expand(-1, -1, -1, self.heads // self.groups, -1).flatten(2, 3)
            for part in (read, write)
        )
        log_f = (step * -self.log_decay.to(step.dtype).exp()).unsqueeze(-1).expand(of_heads)
        return x, read, write, (step.unsqueeze(-1) * x).to(x.dtype), log_f
