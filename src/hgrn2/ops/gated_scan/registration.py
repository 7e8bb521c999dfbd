"""The element-wise scan as a custom operator of PyTorch; see hgru2/registration.py, whose shape this follows."""

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.gated_scan import chunked
from hgrn2.ops.operator import operator
from hgrn2.ops.sequences import offsets_of, plan_chunks


@operator("gated_scan")
def forward(
    x: Tensor, f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, final state, carries): what `_kept` names is saved for the backward.

    triton returns h in x's dtype, and states every few tokens from which its backward computes h again; the others
    return h in the working dtype, which their backward reads as it was computed, and no carries.
    """
    if backend == "triton":
        from hgrn2.ops.gated_scan import triton

        return triton.forward(x, f, state, cu_seqlens, reverse)
    work, channels = work_dtype(x.dtype), x.shape[2]
    offsets = offsets_of(cu_seqlens, x.shape[0], x.shape[1])
    flat = [y.to(work).flatten(0, 1).contiguous() for y in (x, f)]
    start = None if state is None else state.to(work).contiguous()
    if backend == "native":
        from hgrn2.ops.native import call

        h, final = torch.empty_like(flat[0]), flat[0].new_empty(offsets.numel() - 1, channels)
        call.elementwise("scan_forward", work, offsets, channels, (*flat, start, h, final), reverse=reverse)
    else:
        plan = plan_chunks(offsets, chunked.CHUNK, reverse, x.device)
        start = flat[0].new_zeros(offsets.numel() - 1, channels) if start is None else start
        h, final = chunked.forward(plan, flat[0].unsqueeze(1), flat[1].unsqueeze(1), start)
    return h.reshape(x.shape), final, flat[0].new_empty(0)


@forward.register_fake
def _(x, f, state, cu_seqlens, reverse, backend):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    work = work_dtype(x.dtype)
    final = x.new_empty((sequences, x.shape[2]), dtype=work)
    if backend == "triton":
        from hgrn2.ops.gated_scan import triton

        return x.new_empty(x.shape), final, x.new_empty(triton.carries_shape(x), dtype=work)
    return x.new_empty(x.shape, dtype=work), final, x.new_empty(0, dtype=work)


@operator("gated_scan_backward")
def backward(
    x: Tensor, f: Tensor, kept: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, grad_h: Tensor,
    grad_state: Tensor, reverse: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, f and the initial state; `kept` is the forward's h, for triton its carries."""
    if backend == "triton":
        from hgrn2.ops.gated_scan import triton

        dx, df, d_start = triton.backward(x, f, kept, state, cu_seqlens, grad_h, grad_state, reverse)
        return dx, df, d_start if state is None else d_start.to(state.dtype)
    work, channels = kept.dtype, x.shape[2]
    offsets = offsets_of(cu_seqlens, x.shape[0], x.shape[1])
    gate, out, grad = (y.to(work).flatten(0, 1).contiguous() for y in (f, kept, grad_h))
    start = None if state is None else state.to(work).contiguous()
    grad_state = grad_state.to(work).contiguous()
    d_start = torch.empty_like(grad_state)
    if backend == "native":
        from hgrn2.ops.native import call

        dx, df = torch.empty_like(out), torch.empty_like(out)
        tensors = (gate, out, start, grad, grad_state, dx, df, d_start)
        call.elementwise("scan_backward", work, offsets, channels, tensors, reverse=reverse)
    else:
        dx, df, d_start = _chunked_backward(gate, out, start, grad, grad_state, offsets, reverse)
    d_state = d_start if state is None else d_start.to(state.dtype)
    return dx.reshape(x.shape).to(x.dtype), df.reshape(f.shape).to(f.dtype), d_state


def _chunked_backward(f, h, start, grad, grad_state, offsets, reverse):  # type: ignore[no-untyped-def]
    # conj_physical throughout: PyTorch switches lazy conjugation off while it traces, and x.conj() would then be x
    plan = plan_chunks(offsets, chunked.CHUNK, not reverse, f.device)
    following = chunked.shift_gates(f.unsqueeze(1), offsets, reverse).conj_physical()
    g, _ = chunked.forward(plan, grad.unsqueeze(1), following, grad_state)
    g = g.squeeze(1)
    first = (offsets[1:] - 1 if reverse else offsets[:-1])[offsets.diff() > 0].to(f.device)
    some = (offsets.diff() > 0).to(f.device)
    before = h.roll(-1 if reverse else 1, 0)
    before[first] = 0 if start is None else start[some]
    d_start = grad_state.clone()
    d_start[some] = f[first].conj_physical() * g[first]
    return g, g * before.conj_physical(), d_start


@backward.register_fake
def _(x, f, kept, state, cu_seqlens, grad_h, grad_state, reverse, backend):
    d_state = torch.empty_like(grad_state) if state is None else torch.empty_like(state)
    return x.new_empty(x.shape), f.new_empty(f.shape), d_state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, f, state, cu_seqlens, *ctx.options = inputs
    ctx.save_for_backward(x, f, _kept(output, ctx.options[1]), state, cu_seqlens)


def _kept(output, backend: str) -> Tensor:  # type: ignore[no-untyped-def]
    h, _, carries = output
    return carries if backend == "triton" else h


def _autograd(ctx, grad_h: Tensor, grad_state: Tensor, _):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # once: recomputed activations are handed out a single time
    dx, df, d_state = backward(*tensors, grad_h, grad_state, *ctx.options)
    return dx, df, None if tensors[3] is None else d_state, None, None, None


forward.register_autograd(_autograd, setup_context=_setup_context)
backward.refuse_derivatives()
