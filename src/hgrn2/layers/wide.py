"""HGRN1's real recurrence on n D channels, which a structured map makes of D: the alternatives to the outer product.

    i, o, f = x W_i, x W_o, x W_f, n D numbers each        f_t = γ + (1-γ) σ(f)
    h_t = f_t ⊙ h_{t-1} + (1-f_t) ⊙ act_i(i_t)             y_t[c] = norm(Σ_j act_o(o_t)[j,c] h_t[j,c]) W_out

with j = 1…n copies of each channel c. A dense W has n D² weights; `layers.maps` has structures that have about D² or
fewer. The state is as large as that of HGRN2 with heads of n, whose outer product needs no map at all. The structures
are our reconstruction of those named in arXiv 2404.07904, section 3, whose definitions we could not read.
"""

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.expansion import Parts, scan_vector
from hgrn2.layers.kinds import copies
from hgrn2.layers.maps import MAPS
from hgrn2.layers.norm import Norm
from hgrn2.layers.operators import WHOLE, Operators
from hgrn2.layers.state import LayerState
from hgrn2.layers.terms import Terms
from hgrn2.ops.backend import work_dtype
from hgrn2.ops.hgru2.chunked import gates


class WideHGRU1(nn.Module):
    """D -> D, state [B,D n]: n numbers per channel."""

    operators: Operators = WHOLE

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width, self.copies = config, width, copies(config)
        made = MAPS[config.expansion_map]
        self.input, self.output, self.forget = (made(width, self.copies, config.groups) for _ in range(3))
        self.bias = nn.Parameter(torch.empty(3, self.copies, width)) if config.bias else None
        self.input_activation = nn.SiLU() if config.input_activation == "silu" else nn.Identity()
        self.output_activation = nn.SiLU() if config.output_activation == "silu" else nn.Sigmoid()
        self.norm = Norm(config.norm, width, config.norm_eps)
        self.out_proj = nn.Linear(width, width, bias=config.bias)

    def start(self) -> None:
        """Every map's output has the variance that a dense matrix of normal(0, 0.02) gives it; biases are zero."""
        for made in (self.input, self.output, self.forget):
            made.start()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token, float32 or float64."""
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"states of {self.config.kind} are float32, not {str(dtype).removeprefix('torch.')}")
        return LayerState(torch.zeros(batch, self.copies * self.width, device=device, dtype=dtype))

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
        """x [B,T,D], lower bound [D], state of B (or N packed) sequences -> (y [B,T,D], state after the last token).

        Tokens whose `padding_mask` [B,T] is False leave the state exactly as it was; their y means nothing. With
        `inplace` the state given is overwritten by the new one and returned.
        """
        value, output = (self._mapped(n, x) for n in range(2))
        parts = self._parts(self.input_activation(value), self._mapped(2, x), lower_bound)
        h, final = scan_vector(
            self.operators, parts, None if state is None else state.recurrent, cu_seqlens=cu_seqlens,
            padding_mask=padding_mask, output_state=output_state,
        )  # fmt: skip
        opened = self.output_activation(output)
        y = (opened.mT * h.unflatten(-1, (-1, self.copies)).to(opened.dtype)).sum(-1)
        y = self.out_proj(self.norm(y))
        found = LayerState(final) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    def log_forget(self, x: Tensor, lower_bound: Tensor | None, past: None = None) -> Tensor:
        """ln f [B,T,D n], float32 (float64 for float64)."""
        f = self._mapped(2, x)
        return self._parts(f, f, lower_bound).log_forget

    def terms(self, x: Tensor, lower_bound: Tensor | None) -> Terms:
        """The recurrence over x [B,T,D] as a sum over tokens, of sequences that start at x: every channel is a head of
        n keys, (1-f) ⊙ i, and one value, 1."""
        value, output = (self._mapped(n, x) for n in range(2))
        parts = self._parts(self.input_activation(value), self._mapped(2, x), lower_bound)
        log_f, added = (part.unflatten(-1, (self.width, -1)) for part in (parts.log_forget, parts.key * parts.value))
        query = self.output_activation(output).mT.to(log_f.dtype)
        return Terms(query, added, torch.ones_like(added[..., :1]), log_f)

    def _mapped(self, which: int, x: Tensor) -> Tensor:
        """One of i, o, f [B,T,n,D]."""
        y = (self.input, self.output, self.forget)[which](x)
        return y if self.bias is None else y + self.bias[which].to(y.dtype)

    def _parts(self, value: Tensor, forget: Tensor, lower_bound: Tensor | None) -> Parts:
        """i after its activation and f, [B,T,n,D]; the copies of a channel share its lower bound."""
        work = work_dtype(forget.dtype)
        gate = gates(forget.to(work), None if lower_bound is None else lower_bound.to(work))
        return Parts(*(part.mT.flatten(2) for part in (gate.log_forget, gate.key, value)))
