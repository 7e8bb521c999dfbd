"""The HGRN2 token mixer: one fused projection, bounded gates, outer-product state, norm, output projection.

    [i, o, f] = x W_in        f_t = γ + (1-γ) σ(f)      S_t = Diag(f_t) S_{t-1} + (1-f_t) ⊗ act_i(i_t)
    y_t = norm(act_o(o_t) S_t) W_out

arXiv 2404.07904 section 3; options in which published versions differ are in `MixerConfig`.
"""

from math import inf

import torch
from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.masking import convolve_kept
from hgrn2.layers.norm import Norm
from hgrn2.layers.state import LayerState


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
    q: Tensor, f: Tensor, i: Tensor, bound: Tensor | None, *, heads: int, state: Tensor, inplace: bool,
    input_activation: str, output_activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`ops.hgru2_step`, in a form that `torch.compile` can trace."""
    names = (input_activation, output_activation)
    if torch.compiler.is_compiling():
        state = state if inplace else state.clone()
        return _step_inplace(q, f, i, bound, state, heads, *names, scale), state
    return ops.hgru2_step(
        q, f, i, bound, heads=heads, state=state, inplace=inplace, input_activation=names[0],
        output_activation=names[1], scale=scale,
    )  # fmt: skip


class HGRU2(nn.Module):
    """D -> D, state [B,H,n,n] with n the head size and H = D / n; 4 D² weights, whatever n is."""

    def __init__(self, width: int, config: MixerConfig) -> None:
        super().__init__()
        self.config, self.width, self.heads = config, width, width // config.head_size
        self.projections = (width, width, width)
        self.in_proj = nn.Linear(width, sum(self.projections), bias=config.bias)
        self.conv = nn.Parameter(torch.empty(3 * width, config.conv_width)) if config.conv_width else None
        self.norm = Norm(config.norm, width, config.norm_eps, heads=self.heads)
        self.out_proj = nn.Linear(width, width, bias=config.bias)
        self.scale = config.head_size**-0.5 if config.scale_scores else 1.0

    def zeros(self, batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> LayerState:
        """The state before the first token; dtype is float32 (float64 for a float64 model), or a narrower one to save
        memory traffic in decoding, which rounds the state after every token."""
        n, taps = self.config.head_size, self.config.conv_width - 1
        conv_dtype = torch.float64 if dtype == torch.float64 else torch.float32  # small: nothing is saved by rounding
        conv = torch.zeros(batch, taps, 3 * self.width, device=device, dtype=conv_dtype) if taps > 0 else None
        return LayerState(torch.zeros(batch, self.heads, n, n, device=device, dtype=dtype), conv)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: LayerState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        keep: Tensor | None = None,
        output_state: bool = True,
        inplace: bool = False,
    ) -> tuple[Tensor, LayerState | None]:
        """x [B,T,D], bound γ [D], state of B (or N packed) sequences -> (y [B,T,D], state after the last token).

        Tokens whose `keep` [B,T] is False leave the state exactly as it was; their y means nothing. With `inplace` the
        state given is overwritten by the new one and returned, whatever its dtype.
        """
        projected, conv_state = self._convolve(self.in_proj(x), state, cu_seqlens, keep, output_state)
        i, o, f = projected.split(self.projections, -1)
        if keep is not None:
            # A gate logit of +inf is the operator's exact "nothing happened"; a zero input keeps 0 * inf out of it.
            f = f.masked_fill(~keep.unsqueeze(-1), inf)
            i = i.masked_fill(~keep.unsqueeze(-1), 0)
        options = {
            "heads": self.heads,
            "input_activation": self.config.input_activation,
            "output_activation": self.config.output_activation,
            "scale": self.scale,
        }
        start = None if state is None else state.recurrent
        if x.shape[1] == 1 and start is not None and cu_seqlens is None and not torch.is_grad_enabled():
            y, final = one_token(o[:, 0], f[:, 0], i[:, 0], lower_bound, state=start, inplace=inplace, **options)
            y = y.unsqueeze(1)
        else:
            y, final = ops.hgru2(
                o, f, i, lower_bound, state=start, cu_seqlens=cu_seqlens, output_final_state=output_state, **options
            )
        y = self.out_proj(self.norm(y))
        found = LayerState(final, conv_state) if output_state and final is not None else None
        return y, state.overwrite(found) if inplace and state is not None and found is not None else found

    def forget_logits(self, x: Tensor) -> Tensor:
        """x_f [B,T,D], the forget gates before bound and sigmoid, of sequences that start at x."""
        projected, _ = self._convolve(self.in_proj(x), None, None, None, False)
        return projected.split(self.width, -1)[2]

    def _convolve(
        self, x: Tensor, state: LayerState | None, cu_seqlens: Tensor | None, keep: Tensor | None, output_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.conv is None:
            return x, None
        past = None if state is None else state.conv
        if keep is not None:
            y, final = convolve_kept(x, self.conv, keep, past, cu_seqlens)
            return y, final if output_state else None
        return ops.causal_conv(x, self.conv, state=past, cu_seqlens=cu_seqlens, output_final_state=output_state)
