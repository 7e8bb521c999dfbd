"""The element-wise gated scan, real and complex: HGRN1 and expansions that keep a vector state."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_flags, check_tensors
from hgrn2.ops.backend import check_floating, choose, find, has_tangents, register
from hgrn2.ops.gated_scan import registration
from hgrn2.ops.gated_scan.backends import BACKENDS, CHUNKED
from hgrn2.ops.sequences import check_cu_seqlens

register("gated_scan", BACKENDS, step="gated_step")


def gated_scan(
    x: Tensor,
    f: Tensor,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    output_final_state: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """h_t = f_t h_{t-1} + x_t for every channel (HGRN1, arXiv 2311.04823, eq. 3 with the input already gated).

    Args:
        x, f: [B,T,D], both real or both complex; f is the gate itself, not its logarithm.
        state: initial state [B,D] ([N,D] with cu_seqlens), None is zero.
        cu_seqlens, reverse, output_final_state, backend: as in `hgru2`.

    Returns:
        h [B,T,D] in x's dtype and the final state (float32 or complex64; double precision for double inputs) or None.

    Raises:
        UserError: shapes or dtypes that do not fit, or a backend that cannot serve the call.
    """
    _check(x, f, state, cu_seqlens)
    check_flags(reverse=reverse, output_final_state=output_final_state)
    dual = has_tangents(x, f, state)
    choice = choose(x.device, backend, op="gated_scan", dtype=x.dtype, forward_mode=dual).backend
    chosen, tensors = find("gated_scan", choice), (x, f, state, cu_seqlens)
    if chosen.composed:
        h, final = chosen.forward(*tensors, reverse)
    else:
        h, final, _ = registration.forward(*tensors, reverse, choice)
        h = h.to(x.dtype)
    return h, final if output_final_state else None


def gated_step(x: Tensor, f: Tensor, *, state: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """One token: x, f, state [B,D] -> (h [B,D] in x's dtype, state); no gradient."""
    check_tensors(x=x, f=f, state=state)
    check_flags(inplace=inplace)
    if state is None or x.dim() != 2 or f.dim() != 2:
        raise UserError("gated_step takes x, f and state [B,D]")
    _check(x[:, None], f[:, None], state, None)
    with torch.no_grad():
        new = state if inplace else state.clone()
        return CHUNKED.step(x, f, new), new


def _check(x: Tensor, f: Tensor, state: Tensor | None, cu: Tensor | None) -> None:
    check_tensors(x=x, f=f, state=state)
    if x.dim() != 3 or x.shape != f.shape:
        raise UserError(f"x and f must be [B,T,D]; got {list(x.shape)} and {list(f.shape)}")
    if x.is_complex() != f.is_complex():
        raise UserError("x and f must both be real or both be complex")
    if not x.is_complex():
        check_floating(x=x, f=f, state=state)
    check_cu_seqlens(cu, x.shape[0])
    wanted = (x.shape[0] if cu is None else cu.numel() - 1, x.shape[2])
    if state is not None and (state.shape != wanted or state.is_complex() != x.is_complex()):
        raise UserError(f"state must be {list(wanted)} and {'complex' if x.is_complex() else 'real'} like x")
