"""Linear recurrent cells of other papers: minGRU, RG-LRU and LRU, each with a vector state as published or expanded.

    minGRU (arXiv 2410.01201)  [v, o, s] = x W_in    z = σ(s)    f = 1 - z               k = z
    RG-LRU (arXiv 2402.19427)  [v, o] = x W_in    v ← conv(v) + c    r = σ(v W_r + b_r)    i = σ(v W_i + b_i)
                               f = exp(-8 r softplus(Λ))                            k = sqrt(1 - f²) i
    LRU (arXiv 2303.06349)     v = x W_in, complex   f e^{iθ} = exp(-exp(ν) + i exp(ω))   k = exp(κ)

`layers.expansion` says what becomes of v, k and f. With a vector state y = (norm(h) ⊙ act_o(o)) W_out, and for LRU y =
norm([Re h, Im h]) W_out + d ⊙ x; expanded, the output vector is the query: y = norm(act_o(o) S) W_out, and for LRU [v,
Re q, Im q] = x W_in with v real and y = norm(Re(q S)) W_out + d ⊙ x. Both forms have the same number of weights, but
for LRU's norm. The papers' cells have no norm (`norm="none"`), minGRU's has no output gate either.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.expansion import Parts, scan_expanded, scan_vector
from hgrn2.layers.grouped import GroupedLinear
from hgrn2.layers.norm import Norm
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.state import LayerState
from hgrn2.layers.steps import start_taps
from hgrn2.layers.terms import Terms
from hgrn2.ops.backend import work_dtype

SHARPNESS = 8.0
"""The power of RG-LRU's decay, as published."""
LEAST, MOST = 0.9, 0.999
"""Decays start evenly between these: RG-LRU's as published, LRU's as published for long texts (there their squares)."""


class Cell(nn.Module):
    """D -> D, state [B,D] or, expanded by n, [B,D/n,n,n]; what the three have in common."""

    operators: Operators = WHOLE
    complex = False
    """Whether the state is."""

    def __init__(self, width: int, config: MixerConfig, projections: tuple[int, ...], read: int) -> None:
        super().__init__()
        self.config, self.width, self.projections = config, width, projections
        self.heads = width // config.expansion if config.expansion else 0
        self.in_proj = nn.Linear(width, sum(projections), bias=config.bias)
        self.norm = Norm(config.norm, read, config.norm_eps)
        self.out_proj = nn.Linear(read, width, bias=config.bias)
        self.output_activation = nn.SiLU() if config.output_activation == "silu" else nn.Sigmoid()

    def start(self) -> None:
        """Nothing of its own."""

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token; dtype is that of the real numbers, float32 or float64."""
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"states of {self.config.kind} are float32, not {str(dtype).removeprefix('torch.')}")
        n, taps = self.config.expansion, self.config.conv_width - 1
        shape = (self.heads, n, n) if n else (self.width,)
        conv = torch.zeros(batch, taps, self.width, device=device, dtype=dtype) if taps > 0 else None
        dtype = dtype.to_complex() if self.complex else dtype
        return LayerState(torch.zeros(batch, *shape, device=device, dtype=dtype), conv)

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
        assert lower_bound is None, f"settings with lower bounds are refused for {self.config.kind}"
        past, start = (None, None) if state is None else (state.conv, state.recurrent)
        mixed, conv_state = self._convolve(self.in_proj(x), past, cu_seqlens, padding_mask, output_state)
        parts, gate = self.parts(mixed)
        options = {"cu_seqlens": cu_seqlens, "padding_mask": padding_mask, "output_state": output_state}
        if self.heads:
            y, final = scan_expanded(self.operators, parts, self.heads, start, inplace=inplace, **options)
        else:
            y, final = scan_vector(self.operators, parts, start, **options)
        y = self.finish(y, gate, x)
        found = LayerState(final, conv_state) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    def parts(self, mixed: Tensor) -> tuple[Parts, Tensor | None]:
        """Projections [B,T,·], convolved -> what `layers.expansion` scans, and the output gate of the vector form."""
        raise NotImplementedError

    def finish(self, y: Tensor, gate: Tensor | None, x: Tensor) -> Tensor:
        """Output of the scan, its gate and the mixer's input -> the mixer's output."""
        y = torch.cat((y.real, y.imag), -1) if y.is_complex() else y
        y = self.norm(y.to(x.dtype if gate is None else gate.dtype))
        return self.out_proj(y if gate is None else y * gate)

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: Tensor | None = None) -> Tensor:
        """ln f [B,T,D], float32 (float64 for float64); `past` as in `LayerState.conv`."""
        mixed, _ = self._convolve(self.in_proj(x), past, None, None, False)
        return self.parts(mixed)[0].log_forget

    def terms(self, x: Tensor, lower_bound: Tensor | None) -> Terms:
        """The recurrence over x [B,T,D] as a sum over tokens; a vector state is D heads of one channel, read with 1."""
        mixed, _ = self._convolve(self.in_proj(x), None, None, None, False)
        parts, _ = self.parts(mixed)
        log_f, heads = parts.log_forget, self.heads or self.width
        query = torch.ones_like(log_f) if parts.query is None else parts.query.to(log_f.dtype)
        if parts.turned_query is not None:
            query = torch.complex(query, parts.turned_query.to(log_f.dtype))
        value = parts.value if parts.value.is_complex() else parts.value.to(log_f.dtype)
        own = (query, parts.key.to(log_f.dtype), value, log_f)
        query, key, value, log_f = (part.unflatten(-1, (heads, -1)) for part in own)
        return Terms(query, key, value, log_f, None if parts.phase is None else parts.phase.unflatten(-1, (heads, -1)))

    def gated(self, parts: Parts, output: Tensor) -> tuple[Parts, Tensor | None]:
        """The output vector where it belongs: the query of the expanded form, a gate on h else."""
        opened = self.output_activation(output)
        if not self.heads:
            return parts, opened
        return Parts(parts.log_forget, parts.key, parts.value, opened), None

    def _convolve(
        self, mixed: Tensor, past: Tensor | None, cu_seqlens: Tensor | None, padding_mask: Tensor | None,
        output_state: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        return mixed, None


class MinGRU(Cell):
    """minGRU: 4 D² weights. Its cell alone is HGRN1's real one without lower bounds, f = σ(-s); expanded it is HGRN2
    without them, whose forget gates have the weights of s with the other sign."""

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__(width, config, (width,) * 3, width)

    def parts(self, mixed: Tensor) -> tuple[Parts, Tensor | None]:
        """[v, o, s]; ln f and z have all their digits near both ends."""
        value, output, s = mixed.split(self.projections, -1)
        s = s.to(work_dtype(s.dtype))
        return self.gated(Parts(nn.functional.logsigmoid(-s), s.sigmoid(), value), output)


class RGLRU(Cell):
    """RG-LRU in Griffin's block: 3 D² weights and 2 D² / G of its two gates, block-diagonal in G = `groups`."""

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__(width, config, (width,) * 2, width)
        taps = config.conv_width
        self.conv = nn.Parameter(torch.empty(width, taps)) if taps else None
        self.conv_bias = nn.Parameter(torch.empty(width)) if taps else None
        self.forget_gate = GroupedLinear(width, width, config.groups, bias=True)
        self.input_gate = GroupedLinear(width, width, config.groups, bias=True)
        self.decay = nn.Parameter(torch.empty(width))

    def start(self) -> None:
        """As published: with a gate r of one the decay is evenly between 0.9 and 0.999."""
        start_taps(self.conv, self.conv_bias)
        rate = -torch.empty_like(self.decay, dtype=torch.float64).uniform_(LEAST, MOST).log() / SHARPNESS
        self.decay.copy_(torch.expm1(rate).log())  # softplus of it is the rate

    def parts(self, mixed: Tensor) -> tuple[Parts, Tensor | None]:
        """[v, o], v convolved."""
        value, output = mixed.split(self.projections, -1)
        work = work_dtype(value.dtype)
        forget, entered = (gate(value).to(work).sigmoid() for gate in (self.forget_gate, self.input_gate))
        log_f = -SHARPNESS * forget * nn.functional.softplus(self.decay.to(work))
        # At log f = 0 the root has no slope: below the smallest number its gradient is none.
        key = (-torch.expm1(2 * log_f)).clamp_min(torch.finfo(work).tiny).sqrt() * entered
        return self.gated(Parts(log_f, key, value), output)

    def _convolve(
        self, mixed: Tensor, past: Tensor | None, cu_seqlens: Tensor | None, padding_mask: Tensor | None,
        output_state: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if self.conv is None or self.conv_bias is None:
            return mixed, None
        value, output = mixed.split(self.projections, -1)
        options: dict[str, Any] = {"output_state": output_state}
        value, conv_state = self.operators.short_conv(value, self.conv, past, cu_seqlens, padding_mask, **options)
        return torch.cat((value + self.conv_bias.to(value.dtype), output), -1), conv_state


class LRU(Cell):
    """LRU, diagonal and complex: 4 D² weights, decay and phase that do not depend on the data."""

    complex = True

    def __init__(self, width: int, config: MixerConfig) -> None:
        parts = (width,) * 3 if config.expansion else (2 * width,)
        super().__init__(width, config, parts, width if config.expansion else 2 * width)
        self.log_rate, self.log_phase, self.log_input, self.skip = (
            nn.Parameter(torch.empty(width)) for _ in range(4)
        )  # fmt: skip

    def start(self) -> None:
        """As published: decays evenly in their square, phases evenly over a full turn, inputs scaled so that a state
        has their variance, d normal."""
        draw = torch.empty_like(self.log_rate, dtype=torch.float64)
        square = draw.clone().uniform_(LEAST**2, MOST**2)
        self.log_rate.copy_((-0.5 * square.log()).log())
        self.log_phase.copy_(draw.clone().uniform_(0, 2 * torch.pi).clamp_min(1e-9).log())
        self.log_input.copy_(0.5 * torch.log1p(-square))
        nn.init.normal_(self.skip)

    def parts(self, mixed: Tensor) -> tuple[Parts, Tensor | None]:
        """v, real and imaginary parts in turn; or [v, Re q, Im q]."""
        work = work_dtype(mixed.dtype)
        log_f, key = -self.log_rate.to(work).exp(), self.log_input.to(work).exp()
        log_f, key = (part.expand(*mixed.shape[:2], -1) for part in (log_f, key))
        phase = self.log_phase.to(work).exp()
        if self.heads:
            value, query, turned = mixed.split(self.projections, -1)
            return Parts(log_f, key, value, query, turned, phase), None
        value = torch.view_as_complex(mixed.to(work).unflatten(-1, (-1, 2)).contiguous())
        return Parts(log_f, key, value, phase=phase), None

    def finish(self, y: Tensor, gate: Tensor | None, x: Tensor) -> Tensor:
        """… + d ⊙ x."""
        return super().finish(y, gate, x) + self.skip.to(x.dtype) * x
