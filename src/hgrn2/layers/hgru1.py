"""The HGRN1 token mixers (arXiv 2311.04823): element-wise recurrences, complex and real.

    c_t = act_i(x W_i)    f_t = γ + (1-γ) σ(x W_f)    h_t = f_t e^{iθ} ⊙ h_{t-1} + (1-f_t) ⊙ c_t
    y_t = (norm([Re h, Im h]) ⊙ act_o(x W_g)) W_out

θ is learned and does not depend on the data; the real form has no θ and half the channels. The input's real and
imaginary parts are interleaved, as in the released code.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.gates import log_forget
from hgrn2.layers.masking import accepts_keep
from hgrn2.layers.norm import Norm
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.state import LayerState
from hgrn2.layers.terms import Terms
from hgrn2.ops.backend import work_dtype
from hgrn2.ops.hgru2.chunked import gates

_ACTIVATIONS = {"none": nn.Identity, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}


class HGRU1(nn.Module):
    """D -> D, state [B,D]: complex64 with 7 D² weights, or real float32 with 4 D²."""

    operators: Operators = WHOLE

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width, self.complex = config, width, config.kind == "hgru1"
        self.parts = 2 if self.complex else 1
        self.projections = (self.parts * width, self.parts * width, width)
        self.in_proj = nn.Linear(width, sum(self.projections), bias=config.bias)
        self.theta = nn.Parameter(torch.empty(width)) if self.complex else None
        self.input_activation = _ACTIVATIONS[config.input_activation]()
        self.output_activation = _ACTIVATIONS[config.output_activation]()
        self.norm = Norm(config.norm, self.parts * width, config.norm_eps)
        self.out_proj = nn.Linear(self.parts * width, width, bias=config.bias)

    def start(self) -> None:
        """The phases θ_j = 10000^(-2j/D)."""
        if self.theta is not None:
            channel = torch.arange(self.width, dtype=torch.float64, device=self.theta.device)
            self.theta.copy_(10000.0 ** (-2 * channel / self.width))

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token; dtype is that of the real numbers, float32 or float64."""
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"states of {self.config.kind} are float32, not {str(dtype).removeprefix('torch.')}")
        complex_of = {torch.float32: torch.complex64, torch.float64: torch.complex128}
        return LayerState(
            torch.zeros(batch, self.width, device=device, dtype=complex_of[dtype] if self.complex else dtype)
        )

    def state_dtype(self, weights: torch.dtype) -> torch.dtype:
        """float32, float64 for float64: a state is a sum over a whole text."""
        return work_dtype(weights)

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
        """x [B,T,D], lower bound [D], state of B (or N packed) sequences -> (y [B,T,D], state after the last token).

        Tokens whose `padding_mask` [B,T] is False leave the state exactly as it was; their y means nothing. With
        `inplace` the state given is overwritten by the new one and returned.
        """
        scanned, gate = self.split(self.in_proj(x))
        added, up = self.masked(scanned, padding_mask, lower_bound)
        start = None if state is None else state.recurrent
        if x.shape[1] == 1 and start is not None and cu_seqlens is None and not torch.is_grad_enabled():
            h, final = ops.gated_step(added[:, 0], up[:, 0], state=start)
            h = h.unsqueeze(1)
        else:
            h, final = self.scan(
                (added, up), lower_bound, start, cu_seqlens=cu_seqlens, output_final_state=output_state
            )
        y = self.finish(h, gate)
        found = LayerState(final) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    # What a mixer of several directions (layers/directions.py) is made of; `forward` is the same for one.

    @property
    def scanned(self) -> tuple[int, ...]:
        """Widths of the projections that one scan needs, in their order."""
        return self.parts * self.width, self.width

    def split(self, projected: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """All projections -> raw c and f of a scan, and the output gate before its activation."""
        c, g, f = projected.split(self.projections, -1)
        return (c, f), g

    def masked(
        self, raw: tuple[Tensor, ...], padding_mask: Tensor | None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Raw c, f -> (1-f) c and f [B,T,D], complex or real; a token whose `padding_mask` is False does nothing."""
        c, f = raw
        work = torch.float64 if c.dtype == torch.float64 else torch.float32
        up, key = torch.sigmoid(f.to(work)), torch.sigmoid(-f.to(work))
        if lower_bound is not None:
            lower_bound = lower_bound.to(work)
            up, key = lower_bound + (1 - lower_bound) * up, (1 - lower_bound) * key
        value = self.input_activation(c.to(work))
        if self.theta is not None:
            value = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
            up = torch.polar(up, self.theta.to(work).expand_as(up))
        added = key * value
        if padding_mask is not None:
            up, added = (
                up.masked_fill(~padding_mask.unsqueeze(-1), 1),
                added.masked_fill(~padding_mask.unsqueeze(-1), 0),
            )
        return added, up

    def scan(
        self, parts: tuple[Tensor, ...], lower_bound: Tensor | None, state: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Parts of `masked` -> (h [B,T,D], final state); options as in `ops.gated_scan`."""
        added, up = parts
        return self.operators.gated_scan(added, up, state=state, **options)

    def finish(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """h [B,T,D] and the output gate -> the mixer's output."""
        assert gate is not None
        y = torch.cat((y.real, y.imag), -1) if self.complex else y
        y, opened = y.to(gate.dtype), self.output_activation(gate)
        return self.out_proj(self.norm(y) * opened)

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: None = None) -> Tensor:
        """ln f [B,T,D], float32; there is no convolution whose inputs could be `past`."""
        return log_forget(self.forget_logits(x), lower_bound)

    def forget_logits(self, x: Tensor) -> Tensor:
        """x_f [B,T,D], the forget gates before bound and sigmoid."""
        return self.in_proj(x)[..., 2 * self.parts * self.width :]

    def terms(self, x: Tensor, lower_bound: Tensor | None) -> Terms:
        """The recurrence over x [B,T,D] as a sum over tokens: D heads of one channel, whose output is h itself."""
        (c, f), _ = self.split(self.in_proj(x))
        work = work_dtype(c.dtype)
        gate = gates(f.to(work), None if lower_bound is None else lower_bound.to(work))
        value = self.input_activation(c.to(work))
        if self.complex:
            value = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
        one, key, value, log_f = (
            part.unsqueeze(-1) for part in (torch.ones_like(gate.key), gate.key, value, gate.log_forget)
        )
        return Terms(one, key, value, log_f, None if self.theta is None else self.theta.to(work).unsqueeze(-1))
