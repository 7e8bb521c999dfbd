"""The HGRN2 core as a custom operator of PyTorch: shapes for tracing, a backward, and the call of the chosen backend.

Under autocast the projections arrive in a low precision and γ and the state in float32, and both are what the operator
wants, so it registers no casts: it works in float32 inside and returns o in i's dtype.
"""

from typing import Any

import torch
from torch import Tensor

from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.gated_outer_scan.chunked import CHUNK
from hgrn2.ops.hgru2 import chunked
from hgrn2.ops.operator import operator
from hgrn2.ops.sequences import offsets_of, plan_chunks


@operator("hgru2")
def forward(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    heads: int, reverse: bool, input_activation: str, output_activation: str, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, final state); arguments as in `hgrn2.ops.hgru2`, every option resolved."""
    options = {"input_activation": input_activation, "output_activation": output_activation, "scale": scale}
    if backend in ("cuda", "triton"):
        return _kernels(backend, q.shape[2] // heads).forward(
            q, f, i, lower_bound, state, cu_seqlens, heads=heads, reverse=reverse, **options
        )
    work = work_dtype(i.dtype)
    offsets = offsets_of(cu_seqlens, q.shape[0], q.shape[1])
    if backend == "native":
        from hgrn2.ops.native import outer
        from hgrn2.ops.native.call import rows

        xq, xf, xi = (rows(x.flatten(0, 1), work) for x in (q, f, i))
        bound, start = (None if x is None else x.to(work).contiguous() for x in (lower_bound, state))
        o, final = outer.hgru2_forward(xq, xf, xi, bound, start, offsets, heads=heads, reverse=reverse, **options)
    else:
        arguments = _chunk_arguments(q, f, i, lower_bound, state, offsets, heads, reverse, work)
        with full_precision(q.device):
            o, final = chunked.forward(*arguments, **options)
    return o.reshape(i.shape).to(i.dtype), final


def _kernels(backend: str, keys: int) -> Any:
    """The module whose forward and backward run on a GPU, for heads of so many channels."""
    if backend == "cuda":
        from hgrn2.ops.cuda import call, small, support

        return small if keys <= support.SMALL else call
    from hgrn2.ops.hgru2 import triton

    return triton


def _chunk_arguments(q, f, i, lower_bound, state, offsets, heads, reverse, work):  # type: ignore[no-untyped-def]
    plan = plan_chunks(offsets, CHUNK, reverse, q.device)
    xq, xf, xi = (x.to(work).flatten(0, 1).unflatten(-1, (heads, x.shape[2] // heads)) for x in (q, f, i))
    bound = None if lower_bound is None else lower_bound.to(work).unflatten(0, (heads, -1))
    shape = (offsets.numel() - 1, heads, q.shape[2] // heads, i.shape[2] // heads)
    return plan, xq, xf, xi, bound, xq.new_zeros(shape) if state is None else state.to(work)


@forward.register_fake
def _(q, f, i, lower_bound, state, cu_seqlens, heads, reverse, input_activation, output_activation, scale, backend):
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, heads, q.shape[2] // heads, i.shape[2] // heads)
    return i.new_empty(i.shape), i.new_empty(shape, dtype=work_dtype(i.dtype))


@operator("hgru2_backward")
def backward(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    grad_o: Tensor, grad_state: Tensor | None, heads: int, reverse: bool, input_activation: str, output_activation: str,
    scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, f, i, lower_bound and the initial state (both empty where there is none).

    Without a grad_state the final state was not used; only the CUDA kernels save the work and memory of its zeros.
    """
    options = {"input_activation": input_activation, "output_activation": output_activation, "scale": scale}
    work = work_dtype(i.dtype)
    if grad_state is None and backend != "cuda":
        sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        grad_state = i.new_zeros((sequences, heads, q.shape[2] // heads, i.shape[2] // heads), dtype=work)
    if backend in ("cuda", "triton"):
        tensors = (q, f, i, lower_bound, state, cu_seqlens, grad_o, grad_state)
        grads = _kernels(backend, q.shape[2] // heads).backward(*tensors, heads=heads, reverse=reverse, **options)
    elif backend == "native":
        from hgrn2.ops.native import outer
        from hgrn2.ops.native.call import rows

        assert grad_state is not None
        xq, xf, xi = (rows(x.flatten(0, 1), work) for x in (q, f, i))
        bound, start = (None if x is None else x.to(work).contiguous() for x in (lower_bound, state))
        do, ds = grad_o.to(work).flatten(0, 1).contiguous(), grad_state.to(work).contiguous()
        offsets = offsets_of(cu_seqlens, q.shape[0], q.shape[1])
        grads = outer.hgru2_backward(xq, xf, xi, bound, start, do, ds, offsets, heads=heads, reverse=reverse, **options)
    else:
        assert grad_state is not None
        offsets = offsets_of(cu_seqlens, q.shape[0], q.shape[1])
        arguments = _chunk_arguments(q, f, i, lower_bound, state, offsets, heads, reverse, work)
        do = grad_o.to(work).flatten(0, 1).unflatten(-1, (heads, i.shape[2] // heads))
        with full_precision(q.device):
            grads = chunked.backward(*arguments, do, grad_state.to(work), **options)
    dq, df, di, d_bound, d_state = grads
    dq, df, di = (g.reshape(x.shape).to(x.dtype) for g, x in ((dq, q), (df, f), (di, i)))
    d_bound = i.new_empty(0) if lower_bound is None or d_bound is None else d_bound.flatten().to(lower_bound.dtype)
    d_state = i.new_empty(0) if state is None else d_state.to(state.dtype)
    return dq, df, di, d_bound, d_state


@backward.register_fake
def _(q, f, i, lower_bound, state, cu_seqlens, grad_o, grad_state, heads, reverse, input_activation, output_activation,
      scale, backend):  # fmt: skip
    d_bound = i.new_empty(0) if lower_bound is None else torch.empty_like(lower_bound)
    d_state = i.new_empty(0) if state is None else torch.empty_like(state)
    return q.new_empty(q.shape), f.new_empty(f.shape), i.new_empty(i.shape), d_bound, d_state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _autograd(ctx, grad_o: Tensor | None, grad_state: Tensor | None):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors
    grad_o = torch.zeros_like(tensors[2]) if grad_o is None else grad_o
    dq, df, di, d_bound, d_state = backward(*tensors, grad_o, grad_state, *ctx.options)
    lower_bound, state = tensors[3:5]
    optional = (None if lower_bound is None else d_bound, None if state is None else d_state)
    return dq, df, di, *optional, None, *([None] * len(ctx.options))


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()


def native_step(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor, heads: int,
    input_activation: str, output_activation: str, scale: float,
) -> Tensor:  # fmt: skip
    """One token on the native backend; updates `state` in place and returns o [B,H*V] in i's dtype."""
    from hgrn2.ops.native import call

    work, rows = state.dtype, state.contiguous()
    q, f, i_work = (call.rows(x, work) for x in (q, f, i))
    bound = None if lower_bound is None else lower_bound.to(work).contiguous()
    o = i_work.new_empty(i_work.shape)
    offsets = torch.arange(q.shape[0] + 1)
    p = call.problem(q.shape[0], heads, q, f, None, i_work, raw=True, reverse=False, scale=scale,
                     input_activation=input_activation, output_activation=output_activation)  # fmt: skip
    call.outer_forward(p, offsets, (q, f, None, i_work, bound, rows), o, rows)
    if rows is not state:
        state.copy_(rows)
    return o.to(i.dtype)
