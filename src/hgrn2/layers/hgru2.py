"""The HGRN2 token mixer: one fused projection, bounded gates, outer-product state, norm, output projection.

    [i, o, f] = x W_in        f_t = γ + (1-γ) σ(f)      S_t = Diag(f_t) S_{t-1} + (1-f_t) ⊗ act_i(i_t)
    y_t = norm(act_o(o_t) S_t) W_out                    (with a gate g, [g, i, o, f] = x W_in: norm(…) ⊙ act_g(g_t))

arXiv 2404.07904 section 3; options in which published versions differ are in `MixerConfig`.
"""

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.gates import log_forget
from hgrn2.layers.masking import accepts_keep
from hgrn2.layers.norm import Norm
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.short_conv import start_conv
from hgrn2.layers.state import LayerState
from hgrn2.layers.terms import Terms
from hgrn2.ops.backend import work_dtype
from hgrn2.ops.hgru2.chunked import gates
from hgrn2.ops.hgru2.elementwise import written
from hgrn2.ops.options import Inputs, ScanOptions


@torch.library.custom_op("hgrn2::hgru2_step_inplace", mutates_args=("state",))
def _step_inplace(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor, heads: int,
    input_activation: str, output_activation: str, scale: float,
) -> Tensor:  # fmt: skip
    """The step as one call that a compiled model does not look into."""
    options = {"input_activation": input_activation, "output_activation": output_activation, "scale": scale}
    return ops.hgru2_step(q, f, i, lower_bound, heads=heads, state=state, inplace=True, **options)[0]


@_step_inplace.register_fake
def _(q, f, i, lower_bound, state, heads, input_activation, output_activation, scale):  # type: ignore[no-untyped-def]
    return i.new_empty(i.shape)


def one_token(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, *, heads: int, state: Tensor, inplace: bool,
    input_activation: str, output_activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`ops.hgru2_step`, in a form that `torch.compile` can trace."""
    names = (input_activation, output_activation)
    if torch.compiler.is_compiling():
        state = state if inplace else state.clone()
        return _step_inplace(q, f, i, lower_bound, state, heads, *names, scale), state
    return ops.hgru2_step(
        q, f, i, lower_bound, heads=heads, state=state, inplace=inplace, input_activation=names[0],
        output_activation=names[1], scale=scale,
    )  # fmt: skip


_GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": nn.functional.silu, "sigmoid": torch.sigmoid}


class HGRU2(nn.Module):
    """D -> D, state [B,H,n,n] with n the head size and H = D / n; 4 D² weights, whatever n is (5 with a gate)."""

    operators: Operators = WHOLE

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width, self.heads = config, width, width // config.head_size
        self.gate = None if config.output_gate == "none" else _GATES[config.output_gate]
        self.projections = (width,) * (3 if self.gate is None else 4)
        self.in_proj = nn.Linear(width, sum(self.projections), bias=config.bias)
        self.conv = nn.Parameter(torch.empty(3 * width, config.conv_width)) if config.conv_width else None
        self.norm = Norm(config.norm, width, config.norm_eps, heads=self.heads)
        self.out_proj = nn.Linear(width, width, bias=config.bias)
        self.scale = config.head_size**-0.5 if config.scale_scores else 1.0
        self.options: dict[str, Any] = {
            "heads": self.heads,
            "input_activation": config.input_activation,
            "output_activation": config.output_activation,
            "scale": self.scale,
        }

    def start(self) -> None:
        """Taps of the convolution."""
        start_conv(self.conv)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token; dtype is float32 (float64 for a float64 model), or a narrower one to save
        memory traffic in decoding, which rounds the state after every token."""
        n, taps = self.config.head_size, self.config.conv_width - 1
        conv_dtype = torch.float64 if dtype == torch.float64 else torch.float32  # small: nothing is saved by rounding
        conv = torch.zeros(batch, taps, 3 * self.width, device=device, dtype=conv_dtype) if taps > 0 else None
        return LayerState(torch.zeros(batch, self.heads, n, n, device=device, dtype=dtype), conv)

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
        `inplace` the state given is overwritten by the new one and returned, whatever its dtype.
        """
        projected, conv_state = self._convolve(self.in_proj(x), state, cu_seqlens, padding_mask, output_state)
        q, f, i = self.masked(self.split(projected)[0], padding_mask)
        start = None if state is None else state.recurrent
        if x.shape[1] == 1 and start is not None and cu_seqlens is None and not torch.is_grad_enabled():
            y, final = one_token(q[:, 0], f[:, 0], i[:, 0], lower_bound, state=start, inplace=inplace, **self.options)
            y = y.unsqueeze(1)
        else:
            y, final = self.scan((q, f, i), lower_bound, start, cu_seqlens=cu_seqlens, output_final_state=output_state)
        y = self.finish(y, None)
        found = LayerState(final, conv_state) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    # What a mixer of several directions (layers/directions.py) is made of; `forward` is the same for one.

    @property
    def scanned(self) -> tuple[int, ...]:
        """Widths of the projections that one scan needs, in their order."""
        return self.projections[-3:]

    def split(self, projected: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """[B,T,3D] -> raw i, o and f of a scan, and the gate that `finish` is given (None here)."""
        if self.gate is None:
            return projected.split(self.projections, -1), None
        gate, i, o, f = projected.split(self.projections, -1)
        return (i, o, f), gate

    def masked(
        self, raw: tuple[Tensor, ...], padding_mask: Tensor | None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Raw i, o, f -> o, f, i in which a token whose `padding_mask` is False does nothing; the bound is not
        needed."""
        i, q, f = raw
        if padding_mask is not None:
            # A gate logit of +inf is the operator's exact "nothing happened"; a zero input keeps 0 * inf out of it.
            f = f.masked_fill(~padding_mask.unsqueeze(-1), inf)
            i = i.masked_fill(~padding_mask.unsqueeze(-1), 0)
        return q, f, i

    def scan(
        self, parts: tuple[Tensor, ...], lower_bound: Tensor | None, state: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Parts of `masked` -> (output [B,T,D] before the norm, final state); options as in `ops.hgru2`."""
        q, f, i = parts
        return self.operators.hgru2(q, f, i, lower_bound, state=state, **self.options, **options)

    def finish(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """Output [B,T,D] and the gate on it, before its activation -> the mixer's output."""
        y = self.norm(y)
        return self.out_proj(y if self.gate is None or gate is None else y * self.gate(gate))

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: Tensor | None = None) -> Tensor:
        """ln f [B,T,D], float32; `past` [B,W-1,3D] as in `LayerState.conv`, None where sequences start at x."""
        return log_forget(self.forget_logits(x, past), lower_bound)

    def forget_logits(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        """x_f [B,T,D], the forget gates before bound and sigmoid; `past` as in `log_forget`."""
        options = {"output_state": False}
        projected, _ = self.operators.short_conv(self.in_proj(x), self.conv, past, None, None, **options)
        return projected.split(self.width, -1)[2]

    def terms(self, x: Tensor, lower_bound: Tensor | None) -> Terms:
        """The recurrence over x [B,T,D] as a sum over tokens, of sequences that start at x."""
        projected, _ = self._convolve(self.in_proj(x), None, None, None, False)
        q, f, i = self.masked(self.split(projected)[0], None)
        inputs = Inputs(q, f, i, lower_bound)
        _, key, value, query = written(inputs, ScanOptions(reverse=False, **self.options))
        log_f = gates(f.to(inputs.work), None if lower_bound is None else lower_bound.to(inputs.work)).log_forget
        return Terms(*(part.unflatten(-1, (self.heads, -1)) for part in (query, key, value, log_f)))

    def _convolve(
        self,
        x: Tensor,
        state: LayerState | None,
        cu_seqlens: Tensor | None,
        padding_mask: Tensor | None,
        output_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        past = None if state is None else state.conv
        return self.operators.short_conv(x, self.conv, past, cu_seqlens, padding_mask, output_state=output_state)
