"""The HGRN2 mixing core from raw projections: gates, tied key, scan and output in one operator."""

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops import activations
from hgrn2.ops.arguments import check_flags, check_ids, check_lower_bound, check_scale, check_tensors
from hgrn2.ops.backend import Batch, check_floating, choose, find, has_tangents, register, widest
from hgrn2.ops.hgru2 import chunked, registration
from hgrn2.ops.hgru2.backends import BACKENDS
from hgrn2.ops.options import Inputs, ScanOptions
from hgrn2.ops.sequences import check_cu_seqlens
from hgrn2.settings import shown

register("hgru2", BACKENDS, step="hgru2_step")


def hgru2(
    q: Tensor,
    f: Tensor,
    i: Tensor,
    lower_bound: Tensor | None = None,
    *,
    heads: int,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    input_activation: str | None = None,
    output_activation: str | None = "silu",
    scale: float = 1.0,
    output_final_state: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """HGRN2's recurrence (arXiv 2404.07904, eq. of section 3.2) over raw projections.

        f_t = γ + (1-γ) σ(f_t)      k_t = (1-γ) σ(-f_t)      (never 1 - f: that cancels where f → 1)
        S_t = Diag(f_t) S_{t-1} + k_t ⊗ act_i(i_t)           o_t = scale · act_o(q_t) S_t

    Args:
        q: output-gate projection [B,T,H*K].
        f: forget-gate projection [B,T,H*K]. +inf skips a token exactly: the state stays, f and i get zero gradients.
        i: input projection [B,T,H*V].
        lower_bound: γ [H*K] in [0,1), which is checked on the CPU; None is 0. Its gradient is float32.
        heads: H; channels are split head-major.
        state: initial state [B,H,K,V] ([N,H,K,V] with cu_seqlens), None is zero.
        cu_seqlens: offsets [N+1] of packed documents in one sequence (B = 1); empty documents are allowed.
        reverse: read each sequence from its last token to its first.
        input_activation, output_activation: None (or "none"), "silu", "sigmoid".
        output_final_state: return the state after the last token.
        backend: "auto" or a name of a backend (`hgrn2.ops.backend`); see `explain`.

    Returns:
        o [B,T,H*V] in i's dtype, before any norm, and the final state [B or N,H,K,V] (float32; float64 for float64
        inputs) or None. Neither shares memory with an input. Differentiable in q, f, i, lower_bound and state.

    Raises:
        UserError: shapes that do not fit, an unknown activation, a backend that cannot serve the call.
    """
    _check(q, f, i, lower_bound, heads, state, cu_seqlens)
    check_scale(scale)
    check_flags(reverse=reverse, output_final_state=output_final_state)
    names = (activations.name_of(input_activation), activations.name_of(output_activation))
    options = ScanOptions(heads, reverse, *names, scale)
    keys, values = q.shape[2] // heads, i.shape[2] // heads
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    batch = Batch(sequences, q.shape[1], heads, chunked.known_bounded(lower_bound, keys, values))
    dual = has_tangents(q, f, i, lower_bound, state)
    choice = choose(
        q.device, backend, op="hgru2", dtype=widest(q, f, i), keys=keys, values=values, batch=batch, forward_mode=dual
    ).backend
    tensors, chosen = Inputs(q, f, i, lower_bound, state, cu_seqlens), find("hgru2", choice)
    o, final = chosen.forward(tensors, options) if chosen.composed else registration.forward(*tensors, *options, choice)
    return o, final if output_final_state else None


def hgru2_step(
    q: Tensor,
    f: Tensor,
    i: Tensor,
    lower_bound: Tensor | None = None,
    *,
    heads: int,
    state: Tensor,
    slots: Tensor | None = None,
    inplace: bool = False,
    input_activation: str | None = None,
    output_activation: str | None = "silu",
    scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One token of `hgru2` for each row of a batch; constant memory, no gradient.

    Args:
        q, f, i: raw projections [B,H*K], [B,H*K], [B,H*V].
        state: [B,H,K,V] float32, or a pool [S,H,K,V] from which `slots` [B] (distinct rows) picks each sequence's.
        inplace: write the new state into `state`; otherwise `state` is left as it was.

    Returns:
        o [B,H*V] in i's dtype, and the state: `state` itself if in place, else a new tensor of its shape.
    """
    check_tensors(q=q, f=f, i=i, lower_bound=lower_bound, state=state, slots=slots)
    check_scale(scale)
    check_flags(inplace=inplace)
    if q.dim() != 2 or q.shape != f.shape or i.dim() != 2 or i.shape[0] != q.shape[0]:
        shapes = f"{list(q.shape)}, {list(f.shape)}, {list(i.shape)}"
        raise UserError(f"hgru2_step takes q and f [B,H*K] and i [B,H*V], not {shapes}")
    if state is None or state.dim() != 4:
        raise UserError(f"state must be [B,H,K,V], not {None if state is None else list(state.shape)}")
    if slots is not None:
        if slots.dim() != 1 or slots.dtype not in (torch.int32, torch.int64):
            raise UserError(f"slots must be [B] whole numbers; got {list(slots.shape)} {slots.dtype}")
        check_ids(slots, state.shape[0], "slot", "the pool of")
    names = (activations.name_of(input_activation), activations.name_of(output_activation))
    rows = state if slots is None else state[:1].expand(slots.shape[0], *state.shape[1:])
    _check_sizes(q, f, i, lower_bound, heads, rows, q.shape[0])
    keys, values = state.shape[-2:]
    dual = has_tangents(q, f, i, lower_bound, state)
    choice = choose(
        q.device,
        backend,
        op="hgru2_step",
        dtype=i.dtype,
        keys=keys,
        values=values,
        state=state.dtype,
        forward_mode=dual,
    ).backend
    step, options = find("hgru2_step", choice).step, ScanOptions(heads, False, *names, scale)
    assert step is not None
    with torch.no_grad():
        pool = state if inplace else state.clone()
        return step(Inputs(q, f, i, lower_bound, pool), slots, options), pool


def _check(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, heads: int, state: Tensor | None, cu: Tensor | None
) -> None:
    check_tensors(q=q, f=f, i=i, lower_bound=lower_bound, state=state)
    if q.dim() != 3 or q.shape != f.shape or i.dim() != 3 or i.shape[:2] != q.shape[:2]:
        raise UserError(
            f"q and f must be [B,T,H*K] and i [B,T,H*V]; got {list(q.shape)}, {list(f.shape)}, {list(i.shape)}"
        )
    check_cu_seqlens(cu, q.shape[0])
    _check_sizes(q, f, i, lower_bound, heads, state, q.shape[0] if cu is None else cu.numel() - 1)


def _check_sizes(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, heads: int, state: Tensor | None, sequences: int
) -> None:
    check_floating(q=q, f=f, i=i, lower_bound=lower_bound, state=state)
    keys, values = q.shape[-1], i.shape[-1]
    if not isinstance(heads, int):
        raise UserError(f"heads is {shown(heads)}; it must be a whole number")
    if heads < 1 or keys % heads or values % heads:
        raise UserError(f"{keys} and {values} channels do not divide into {heads} heads")
    if lower_bound is not None and lower_bound.shape != (keys,):
        raise UserError(f"lower_bound must be [{keys}], one value per channel; got {list(lower_bound.shape)}")
    check_lower_bound(lower_bound)
    wanted = (sequences, heads, keys // heads, values // heads)
    if state is not None and state.shape != wanted:
        raise UserError(f"state must be {list(wanted)}; got {list(state.shape)}")
