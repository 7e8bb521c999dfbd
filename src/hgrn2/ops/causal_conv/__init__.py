"""The short causal convolution, depthwise, with its last inputs as a state."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_flags, check_tensors
from hgrn2.ops.backend import check_floating, choose, find, has_tangents, register
from hgrn2.ops.causal_conv import registration
from hgrn2.ops.causal_conv.backends import BACKENDS, CHUNKED
from hgrn2.ops.sequences import check_cu_seqlens

register("causal_conv", BACKENDS, step="causal_conv_step")


def causal_conv(
    x: Tensor,
    weight: Tensor,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    output_final_state: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """y_t = Σ_{j<W} w_j x_{t-j} for every channel, no activation (the optional convolution of flash-linear-attention).

    Args:
        x: [B,T,D].
        weight: [D,W]; column 0 meets the current token.
        state: the W-1 inputs before the first token [B,W-1,D] ([N,W-1,D] with cu_seqlens), oldest first; None is zero.
        cu_seqlens, output_final_state, backend: as in `hgru2`.

    Returns:
        y [B,T,D] in x's dtype, and the last W-1 inputs of each sequence (zeros where it was shorter) or None.
    """
    _check(x, weight, state, cu_seqlens)
    check_flags(output_final_state=output_final_state)
    dual = has_tangents(x, weight, state)
    choice = choose(x.device, backend, op="causal_conv", dtype=x.dtype, forward_mode=dual).backend
    chosen, tensors = find("causal_conv", choice), (x, weight, state, cu_seqlens)
    y, final = chosen.forward(*tensors) if chosen.composed else registration.forward(*tensors, choice)
    return y, final if output_final_state else None


def causal_conv_step(x: Tensor, weight: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: x [B,D], state [B,W-1,D] -> (y [B,D], new state); no gradient."""
    check_tensors(x=x, weight=weight, state=state)
    if state is None or x.dim() != 2:
        raise UserError("causal_conv_step takes x [B,D], weight [D,W] and state [B,W-1,D]")
    _check(x[:, None], weight, state, None)
    with torch.no_grad():
        return CHUNKED.step(x, weight, state)


def _check(x: Tensor, weight: Tensor, state: Tensor | None, cu: Tensor | None) -> None:
    check_tensors(x=x, weight=weight, state=state)
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] < 1:
        raise UserError(f"x must be [B,T,D] and weight [D,W]; got {list(x.shape)} and {list(weight.shape)}")
    check_floating(x=x, weight=weight, state=state)
    check_cu_seqlens(cu, x.shape[0])
    wanted = (x.shape[0] if cu is None else cu.numel() - 1, weight.shape[1] - 1, x.shape[2])
    if state is not None and state.shape != wanted:
        raise UserError(f"state must be {list(wanted)}; got {list(state.shape)}")
