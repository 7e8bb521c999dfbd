"""The general scan as a custom operator of PyTorch; see hgru2/registration.py, whose shape this follows."""

import torch
from torch import Tensor

from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.gated_outer_scan import chunked
from hgrn2.ops.operator import operator
from hgrn2.ops.sequences import offsets_of, plan_chunks


@operator("gated_outer_scan")
def forward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    reverse: bool, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, final state); arguments as in `hgrn2.ops.gated_outer_scan`, every option resolved."""
    if backend == "triton":
        from hgrn2.ops.gated_outer_scan import triton

        return triton.forward(q, k, v, log_f, state, cu_seqlens, reverse=reverse, scale=scale)
    work, heads = work_dtype(v.dtype), q.shape[2]
    offsets = offsets_of(cu_seqlens, q.shape[0], q.shape[1])
    xq, xk, xv, xf = (x.to(work).flatten(0, 1) for x in (q, k, v, log_f))
    if backend == "native":
        from hgrn2.ops.native import outer

        start = None if state is None else state.to(work).contiguous()
        xq, xk, xv, xf = (x.flatten(1).contiguous() for x in (xq, xk, xv, xf))
        o, final = outer.scan_forward(xq, xk, xv, xf, start, offsets, heads=heads, reverse=reverse, scale=scale)
    else:
        plan = plan_chunks(offsets, chunked.CHUNK, reverse, q.device)
        start = _start(state, q, v, offsets, work)
        with full_precision(q.device):
            o, final = chunked.forward(plan, scale * xq, xk, xv, xf, start, one_product=False)
    return o.reshape(v.shape).to(v.dtype), final


def _start(state: Tensor | None, q: Tensor, v: Tensor, offsets: Tensor, work: torch.dtype) -> Tensor:
    shape = (offsets.numel() - 1, q.shape[2], q.shape[3], v.shape[3])
    return v.new_zeros(shape, dtype=work) if state is None else state.to(work)


@forward.register_fake
def _(q, k, v, log_f, state, cu_seqlens, reverse, scale, backend):
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, q.shape[2], q.shape[3], v.shape[3])
    return v.new_empty(v.shape), v.new_empty(shape, dtype=work_dtype(v.dtype))


@operator("gated_outer_scan_backward")
def backward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    grad_o: Tensor, grad_state: Tensor, reverse: bool, scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_f and the initial state."""
    if backend == "triton":
        from hgrn2.ops.gated_outer_scan import triton

        tensors = (q, k, v, log_f, state, cu_seqlens, grad_o, grad_state)
        *tokens, d_state = triton.backward(*tensors, reverse=reverse, scale=scale)
        return *tokens, d_state if state is None else d_state.to(state.dtype)  # type: ignore[return-value]
    work, heads = work_dtype(v.dtype), q.shape[2]
    offsets = offsets_of(cu_seqlens, q.shape[0], q.shape[1])
    xq, xk, xv, xf, do = (x.to(work).flatten(0, 1) for x in (q, k, v, log_f, grad_o))
    ds = grad_state.to(work).contiguous()
    if backend == "native":
        from hgrn2.ops.native import outer

        start = None if state is None else state.to(work).contiguous()
        xq, xk, xv, xf, do = (x.flatten(1).contiguous() for x in (xq, xk, xv, xf, do))
        grads = outer.scan_backward(xq, xk, xv, xf, start, do, ds, offsets, heads=heads, reverse=reverse, scale=scale)
    else:
        plan = plan_chunks(offsets, chunked.CHUNK, reverse, q.device)
        start = _start(state, q, v, offsets, work)
        with full_precision(q.device):
            grads = chunked.backward(plan, scale * xq, xk, xv, xf, start, do, ds, one_product=False)
        grads = (scale * grads[0], *grads[1:])
    dq, dk, dv, dl = (g.reshape(x.shape).to(x.dtype) for g, x in zip(grads, (q, k, v, log_f), strict=False))
    return dq, dk, dv, dl, grads[4] if state is None else grads[4].to(state.dtype)


@backward.register_fake
def _(q, k, v, log_f, state, cu_seqlens, grad_o, grad_state, reverse, scale, backend):
    d_state = torch.empty_like(grad_state) if state is None else torch.empty_like(state)
    return (*(x.new_empty(x.shape) for x in (q, k, v, log_f)), d_state)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _autograd(ctx, grad_o: Tensor, grad_state: Tensor):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    *grads, d_state = backward(*tensors, grad_o, grad_state, *ctx.options)
    return *grads, None if tensors[4] is None else d_state, None, *([None] * len(ctx.options))


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
