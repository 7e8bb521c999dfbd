"""The selective scan of Mamba (arXiv 2312.00752): a state of N numbers for every channel."""

import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_flags, check_tensors
from hgrn2.ops.backend import check_floating, choose, find, has_tangents, register, work_dtype
from hgrn2.ops.selective_scan import registration
from hgrn2.ops.selective_scan.backends import BACKENDS
from hgrn2.ops.selective_scan.chunked import products
from hgrn2.ops.sequences import check_cu_seqlens

register("selective_scan", BACKENDS)


def selective_scan(
    x: Tensor,
    step: Tensor,
    decay: Tensor,
    write: Tensor,
    read: Tensor,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    output_final_state: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """For every channel e and every one of its N numbers n:

        h_t[e,n] = exp(Δ_t[e] a[e,n]) h_{t-1}[e,n] + Δ_t[e] x_t[e] w_t[n]      y_t[e] = Σ_n r_t[n] h_t[e,n]

    Args:
        x: [B,T,E].
        step: Δ [B,T,E], at least 0, float32 (float64 for float64 inputs); 0 leaves the state as it is.
        decay: a [E,N], at most 0.
        write, read: w and r [B,T,N].
        state: h before the first token [B,E,N] ([N,E,N] with cu_seqlens), None is zero.
        cu_seqlens, output_final_state, backend: as in `hgru2`.

    Returns:
        y [B,T,E] in x's dtype, and h after the last token (float32; float64 for float64 inputs) or None.

    Raises:
        UserError: shapes or dtypes that do not fit, or a backend that cannot serve the call.
    """
    _check(x, step, decay, write, read, state, cu_seqlens)
    check_flags(output_final_state=output_final_state)
    tensors = (x, step, decay.to(step.dtype), write, read, state, cu_seqlens)
    dual = has_tangents(*tensors[:6])
    packed = cu_seqlens is not None
    choice = choose(
        x.device, backend, op="selective_scan", dtype=x.dtype, keys=decay.shape[1], values=packed, forward_mode=dual
    ).backend
    chosen = find("selective_scan", choice)
    y, final = chosen.forward(*tensors) if chosen.composed else registration.forward(*tensors[:6], choice)
    return y, final if output_final_state else None


def selective_step(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, *, state: Tensor, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """One token: x, step [B,E], write, read [B,N], state [B,E,N] -> (y [B,E] in x's dtype, state); no gradient."""
    if x.dim() != 2 or step.dim() != 2:
        raise UserError("selective_step takes x and step [B,E], write and read [B,N] and state [B,E,N]")
    _check(x[:, None], step[:, None], decay, write[:, None], read[:, None], state, None)
    with torch.no_grad():
        added, gates = products(x, step, decay.to(step.dtype), write)
        flat = state.flatten(1)
        h, final = ops.gated_step(added.flatten(1), gates.flatten(1), state=flat, inplace=inplace)
        y = (h.view(state.shape) * read.to(h.dtype).unsqueeze(1)).sum(-1)
        return y.to(x.dtype), final.view(state.shape)


def _check(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None, cu: Tensor | None
) -> None:
    check_tensors(x=x, step=step, decay=decay, write=write, read=read, state=state)
    check_floating(x=x, step=step, decay=decay, write=write, read=read, state=state)
    wide = x.dim() == 3 and step.shape == x.shape and decay.dim() == 2 and decay.shape[0] == x.shape[2]
    if not wide or write.shape != read.shape or write.shape != (*x.shape[:2], decay.shape[1]):
        shapes = ", ".join(str(list(one.shape)) for one in (x, step, decay, write, read))
        raise UserError(f"x and step must be [B,T,E], decay [E,N], write and read [B,T,N]; got {shapes}")
    if step.dtype != work_dtype(x.dtype):
        raise UserError(f"step must be {work_dtype(x.dtype)} beside x in {x.dtype}, not {step.dtype}")
    check_cu_seqlens(cu, x.shape[0])
    wanted = (x.shape[0] if cu is None else cu.numel() - 1, *decay.shape)
    if state is not None and state.shape != wanted:
        raise UserError(f"state must be {list(wanted)}; got {list(state.shape)}")
