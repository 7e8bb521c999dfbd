"""Gated linear attention (arXiv 2312.06635): the same matrix state as HGRN2's, but a key with a projection of its own.

    [q, k, v, g] = x W_in      log f_t = log σ(x W_1 W_2 + b) / 16      S_t = Diag(f_t) S_{t-1} + k_t ⊗ v_t
    y_t = (norm(q_t S_t) ⊙ act_o(g_t)) W_out

HGRN2 ties the key to the gate, k = 1 - f, and so writes little where it forgets little; here the two are free of each
other, for D² more weights of the key, D² of the output gate and two thin ones of the forget gate. There are no lower
bounds: the 16th root keeps gates near one. H = D / n heads hold keys of k = `key_size` channels and values of n; with k
= n a state is as large as HGRN2's. The published models have k = n / 2, and then as many weights as HGRN2.
"""

import torch
from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.layers.config import GATE_RANK, MixerConfig
from hgrn2.layers.masking import accepts_keep
from hgrn2.layers.norm import Norm
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.short_conv import start_conv
from hgrn2.layers.state import LayerState
from hgrn2.layers.terms import Terms
from hgrn2.ops.backend import work_dtype

GATE_ROOT = 16.0
"""The root that is taken of the sigmoid, as published."""


class GLA(nn.Module):
    """D -> D, state [B,H,k,n] with n the head size, k the key size and H = D / n; for k = n 5 D² + 33 D weights."""

    operators: Operators = WHOLE

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width, self.heads = config, width, width // config.head_size
        self.key_size = config.key_size or config.head_size
        keys = self.heads * self.key_size
        self.projections = (keys, keys, width, width)
        self.in_proj = nn.Linear(width, sum(self.projections), bias=config.bias)
        self.gate_down = nn.Linear(width, GATE_RANK, bias=False)
        self.gate_up = nn.Linear(GATE_RANK, keys, bias=True)
        self.conv = nn.Parameter(torch.empty(2 * keys + width, config.conv_width)) if config.conv_width else None
        self.norm = Norm(config.norm, width, config.norm_eps, heads=self.heads)
        self.out_proj = nn.Linear(width, width, bias=config.bias)
        self.output_activation = nn.SiLU() if config.output_activation == "silu" else nn.Sigmoid()
        self.scale = self.key_size**-0.5 if config.scale_scores else 1.0

    def start(self) -> None:
        """Taps of the convolution."""
        start_conv(self.conv)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token; dtype as in `HGRU2.zeros`."""
        n, taps, channels = self.config.head_size, self.config.conv_width - 1, sum(self.projections[:3])
        conv_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        conv = torch.zeros(batch, taps, channels, device=device, dtype=conv_dtype) if taps > 0 else None
        return LayerState(torch.zeros(batch, self.heads, self.key_size, n, device=device, dtype=dtype), conv)

    def state_dtype(self, weights: torch.dtype) -> torch.dtype:
        """float32, float64 for float64: a state is a sum over a whole text."""
        return work_dtype(weights)

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: Tensor | None = None) -> Tensor:
        """ln f [B,T,H*k], float32 (float64 for float64); no convolution is before these gates."""
        logits = self.gate_up(self.gate_down(x))
        return nn.functional.logsigmoid(logits.to(work_dtype(logits.dtype))) / GATE_ROOT

    @accepts_keep
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
        assert lower_bound is None, "settings with lower bounds are refused for gla"
        past = None if state is None else state.conv
        mixed, gate = self.in_proj(x).split((sum(self.projections[:3]), self.width), -1)
        mixed, conv_state = self.operators.short_conv(
            mixed, self.conv, past, cu_seqlens, padding_mask, output_state=output_state
        )
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in mixed.split(self.projections[:3], -1))
        log_f = self.log_forget(x, None).unflatten(-1, (self.heads, -1))
        if padding_mask is not None:
            skipped = ~padding_mask[:, :, None, None]
            log_f, k, v = log_f.masked_fill(skipped, 0), k.masked_fill(skipped, 0), v.masked_fill(skipped, 0)
        start = None if state is None else state.recurrent
        if x.shape[1] == 1 and start is not None and cu_seqlens is None and not torch.is_grad_enabled():
            y, final = ops.gated_outer_step(
                q[:, 0], k[:, 0], v[:, 0], log_f[:, 0], state=start, scale=self.scale, inplace=inplace
            )
            y = y.unsqueeze(1)
        else:
            y, final = self.operators.gated_outer_scan(
                q, k, v, log_f, state=start, cu_seqlens=cu_seqlens, scale=self.scale, output_final_state=output_state
            )
        y = self.out_proj(self.norm(y.flatten(2)) * self.output_activation(gate))
        found = LayerState(final, conv_state) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    def terms(self, x: Tensor, lower_bound: Tensor | None) -> Terms:
        """The recurrence over x [B,T,D] as a sum over tokens, of sequences that start at x."""
        mixed = self.in_proj(x)[..., : sum(self.projections[:3])]
        mixed, _ = self.operators.short_conv(mixed, self.conv, None, None, None, output_state=False)
        work = work_dtype(mixed.dtype)
        q, k, v = mixed.to(work).split(self.projections[:3], -1)
        parts = (self.scale * q, k, v, self.log_forget(x, None))
        return Terms(*(part.unflatten(-1, (self.heads, -1)) for part in parts))
