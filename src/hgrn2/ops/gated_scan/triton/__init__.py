"""The element-wise scan as Triton kernels: real and complex gates, any length, one or many documents.

    forward:    reads x and f, writes h          backward: reads x, f and dh, writes dx and df

which is every byte that has to move: h is computed in float32 (float64 for double inputs), rounded once into x's dtype,
and computed again in the backward from the states that the forward leaves every few tokens. Where B·D is too small to
fill the GPU, sequences are cut into segments and both passes read their inputs twice (see settings.py).

Sequences of a batch lie side by side. Packed documents are one sequence in which the state is replaced wherever a
document begins; where that is, a kernel works out from cu_seqlens, so nothing waits for the host and other lengths
are not another kernel. Offsets in GPU memory are therefore not checked.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor

from hgrn2.gpu import processors
from hgrn2.ops.backend import work_dtype
from hgrn2.ops.gated_scan.triton.settings import Cut, Settings, cut, settings_of
from hgrn2.ops.sequences import offsets_of


def carries_shape(x: Tensor) -> tuple[int, int, int]:
    """Shape of the states that the forward leaves for the backward, in the working dtype."""
    rows = settings_of(x.dtype).rows
    return x.shape[0], (x.shape[1] + rows - 1) // rows, x.shape[2]


def forward(
    x: Tensor, f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(h in x's dtype, final state, carries); arguments as in `hgrn2.ops.gated_scan`."""
    from hgrn2.ops.gated_scan.triton.forward_kernels import scan, summarise

    work = work_dtype(x.dtype)
    x, f = _channels_last(x), _channels_last(f)
    start = None if state is None else state.to(work).contiguous()
    h = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    carries = torch.empty(carries_shape(x), dtype=work, device=x.device)
    final = _final_state(x, start, cu_seqlens)
    if h.numel() == 0:
        return h, final, carries
    with _on(x.device):
        call = _Call(x, start, cu_seqlens, reverse)
        pieces = call.pieces
        inputs, strides = (_reals(x), _reals(f), call.state), (*_strides(x), *_strides(f))
        if pieces.segments > 1:
            call.run(summarise, pieces.segments - 1, *inputs, call.first, *call.summaries, strides=strides, state=True)
        outputs = (_reals(h), _reals(carries), _reals(final))
        call.run(
            scan, pieces.segments, *inputs, call.first, call.last, *call.summaries, *outputs, strides=strides,
            state=True,
        )  # fmt: skip
    return h, final, carries


def backward(
    x: Tensor, f: Tensor, carries: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, grad_h: Tensor,
    grad_state: Tensor, reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, df, gradient of the initial state in the working dtype)."""
    from hgrn2.ops.gated_scan.triton.backward_kernels import scan_back, summarise_back

    work = work_dtype(x.dtype)
    x, f, grad_h = _channels_last(x), _channels_last(f), _channels_last(grad_h)
    start = None if state is None else state.to(work).contiguous()
    arriving = grad_state.resolve_conj().to(work).contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    df = torch.empty(f.shape, dtype=f.dtype, device=f.device)
    d_state = arriving.clone()
    if dx.numel() == 0:
        return dx, df, d_state
    with _on(x.device):
        call = _Call(x, start, cu_seqlens, reverse)
        pieces, incoming = call.pieces, (_reals(grad_h), _reals(arriving))
        strides = (*_strides(f), *_strides(grad_h))
        if pieces.segments > 1:
            call.run(
                summarise_back, pieces.segments - 1, _reals(f), *incoming, call.last, *call.summaries, strides=strides
            )
        call.run(
            scan_back, pieces.segments, _reals(x), _reals(f), call.state, *incoming, call.first, call.last,
            *call.summaries, _reals(carries), _reals(dx), _reals(df), _reals(d_state),
            strides=(*_strides(x), *strides), state=True,
        )  # fmt: skip
    return dx, df, d_state


class _Call:
    """What the kernels of one call have in common; x is [B,T,D] with contiguous channels."""

    def __init__(self, x: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, reverse: bool) -> None:
        batch, self.tokens, channels = x.shape
        self.batch, self.complex, self.packed = batch, x.is_complex(), cu_seqlens is not None
        self.reals = channels * (2 if self.complex else 1)
        self.settings: Settings = settings_of(x.dtype)
        self.pieces: Cut = cut(self.settings, batch, self.tokens, self.reals, processors(x.device))
        self.first_row, self.direction = (self.tokens - 1, -1) if reverse else (0, 1)
        work = work_dtype(x.dtype)
        nothing = torch.empty(0, dtype=work.to_real(), device=x.device)
        self.has_state, self.state = state is not None, nothing if state is None else _reals(state)
        shape = (2, batch, self.pieces.segments, self.reals) if self.pieces.segments > 1 else (2, 0)
        self.summaries = tuple(torch.empty(shape, dtype=nothing.dtype, device=x.device))
        self.first = self.last = torch.empty(0, dtype=torch.int32, device=x.device)
        if cu_seqlens is not None:
            self._mark(cu_seqlens, x.device)

    def _mark(self, cu_seqlens: Tensor, device: torch.device) -> None:
        from hgrn2.ops.gated_scan.triton.rows import mark_documents

        if cu_seqlens.device.type == "cpu":  # on the host already: looking costs nothing
            cu_seqlens = offsets_of(cu_seqlens, 1, self.tokens).to(device, non_blocking=True)
        documents, block = cu_seqlens.numel() - 1, 128
        self.first, self.last = torch.full((2, self.tokens), -1, dtype=torch.int32, device=device)
        mark_documents[(-(-documents // block),)](
            cu_seqlens.contiguous(), self.first, self.last, documents, self.tokens, self.first_row, self.direction,
            BLOCK=block,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip

    def run(self, kernel: Any, segments: int, *tensors: Tensor, strides: tuple[int, ...], state: bool = False) -> None:
        """Launch a kernel with one program for each sequence, segment and block of channels."""
        settings, pieces = self.settings, self.pieces
        blocks = -(-self.reals // settings.width)
        flags = {"STATE": self.has_state} if state else {}
        kernel[(blocks * segments * self.batch,)](
            *tensors, self.tokens, pieces.length, pieces.segments, blocks, self.reals, self.first_row, self.direction,
            *strides, **flags, PACKED=self.packed, COMPLEX=self.complex, ROWS=settings.rows, WIDTH=settings.width,
            num_warps=1, num_stages=1,
        )  # fmt: skip


def _final_state(x: Tensor, start: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Memory for the final state: of documents without tokens, nothing but their initial state is known."""
    shape = (x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1, x.shape[2])
    if cu_seqlens is None and x.numel():
        return torch.empty(shape, dtype=work_dtype(x.dtype), device=x.device)
    return torch.zeros(shape, dtype=work_dtype(x.dtype), device=x.device) if start is None else start.clone()


def _channels_last(x: Tensor) -> Tensor:
    """The tensor with contiguous channels and its conjugation carried out; a copy only where needed."""
    x = x.resolve_conj().resolve_neg()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _reals(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _strides(x: Tensor) -> tuple[int, int]:
    """Reals from one sequence to the next, and from one token to the next."""
    size = 2 if x.is_complex() else 1
    return size * x.stride(0), size * x.stride(1)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
