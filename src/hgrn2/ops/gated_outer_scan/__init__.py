"""The general gated outer-product scan: untied keys (GLA and other expanded linear RNNs)."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_flags, check_scale, check_tensors
from hgrn2.ops.backend import check_floating, choose, find, has_tangents, register
from hgrn2.ops.gated_outer_scan import registration
from hgrn2.ops.gated_outer_scan.backends import BACKENDS, CHUNKED
from hgrn2.ops.options import OuterInputs, OuterOptions
from hgrn2.ops.sequences import check_cu_seqlens

register("gated_outer_scan", BACKENDS, step="gated_outer_step")


def gated_outer_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    scale: float = 1.0,
    output_final_state: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Linear attention with a decay for every key channel: S_t = Diag(f_t) S_{t-1} + k_t ⊗ v_t, o_t = scale · q_t S_t.

    Args:
        q, k, log_f: [B,T,H,K]; log_f = log f_t ≤ 0, -inf forgets everything.
        v: [B,T,H,V].
        state: initial state [B,H,K,V] ([N,H,K,V] with cu_seqlens), None is zero.
        cu_seqlens, reverse, output_final_state, backend: as in `hgru2`.

    Returns:
        o [B,T,H,V] in v's dtype and the final state (float32; float64 for float64 inputs) or None.

    Raises:
        UserError: shapes that do not fit or a backend that cannot serve the call.
    """
    _check(q, k, v, log_f, state, cu_seqlens)
    check_scale(scale)
    check_flags(reverse=reverse, output_final_state=output_final_state)
    dual = has_tangents(q, k, v, log_f, state)
    choice = choose(
        q.device, backend, op="gated_outer_scan", dtype=v.dtype, keys=q.shape[3], values=v.shape[3], forward_mode=dual
    ).backend
    chosen = find("gated_outer_scan", choice)
    tensors, options = OuterInputs(q, k, v, log_f, state, cu_seqlens), OuterOptions(reverse, scale)
    o, final = chosen.forward(tensors, options) if chosen.composed else registration.forward(*tensors, *options, choice)
    return o, final if output_final_state else None


def gated_outer_step(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, *, state: Tensor, scale: float = 1.0, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """One token: q, k, log_f [B,H,K], v [B,H,V], state [B,H,K,V] -> (o [B,H,V] in v's dtype, state); no gradient."""
    check_tensors(q=q, k=k, v=v, log_f=log_f, state=state)
    check_scale(scale)
    check_flags(inplace=inplace)
    if state is None or any(x.dim() != 3 for x in (q, k, v, log_f)):
        raise UserError("gated_outer_step takes q, k, log_f [B,H,K], v [B,H,V] and state [B,H,K,V]")
    _check(q[:, None], k[:, None], v[:, None], log_f[:, None], state, None)
    with torch.no_grad():
        new = state if inplace else state.clone()
        return CHUNKED.step(q, k, v, log_f, new, scale), new


def _check(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu: Tensor | None) -> None:
    check_tensors(q=q, k=k, v=v, log_f=log_f, state=state)
    if q.dim() != 4 or not q.shape == k.shape == log_f.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, log_f, v))
        raise UserError(f"q, k, log_f must be [B,T,H,K] and v [B,T,H,V]; got {shapes}")
    check_floating(q=q, k=k, v=v, log_f=log_f, state=state)
    batch, _, heads, width = q.shape
    check_cu_seqlens(cu, batch)
    wanted = (batch if cu is None else cu.numel() - 1, heads, width, v.shape[3])
    if state is not None and state.shape != wanted:
        raise UserError(f"state must be {list(wanted)}; got {list(state.shape)}")
