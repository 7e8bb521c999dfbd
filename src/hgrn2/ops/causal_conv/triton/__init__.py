"""The short convolution as Triton kernels: x is read and y written once, whatever the number of taps.

In whole-tensor operations every tap makes passes of its own over float32 copies: for four taps about twenty times the
bytes, forward alone, and many kernels. The ends (final states, gradients of initial ones) are a few rows per document
and stay plain PyTorch. Nothing waits for the host; offsets in GPU memory are therefore not checked.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.sequences import offsets_of

_LANES = 32


def forward(x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """(y in x's dtype, the last W-1 inputs of each sequence in the working dtype)."""
    from hgrn2.ops.causal_conv.triton.kernels import convolve

    x, work = _channels_last(x), work_dtype(x.dtype)
    taps, start = weight.contiguous(), None if state is None else state.to(work).contiguous()
    documents = _documents(x, cu_seqlens)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        with _on(x.device):
            launch = _Launch(x, taps)
            convolve[launch.grid](
                x, taps, _or_nothing(start, x), documents.ages, documents.numbers, y, *launch.sizes, x.stride(0),
                x.stride(1), **launch.options(start, cu_seqlens),
            )  # fmt: skip
    return y, _last_inputs(x, start, documents, weight.shape[1] - 1)


def backward(
    x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, gradient of the weights, gradient of the state in the working dtype)."""
    from hgrn2.ops.causal_conv.triton.kernels import convolve_back

    x, grad_y, work = _channels_last(x), _channels_last(grad_y), work_dtype(x.dtype)
    taps, start = weight.contiguous(), None if state is None else state.to(work).contiguous()
    arriving, documents = grad_state.to(work).contiguous(), _documents(x, cu_seqlens)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    d_weight = torch.zeros(weight.shape, dtype=weight.dtype, device=x.device)
    if dx.numel():
        with _on(x.device):
            launch = _Launch(x, taps)
            partial = x.new_empty((launch.shares, weight.shape[1], x.shape[2]), dtype=work)
            convolve_back[launch.grid](
                x, taps, _or_nothing(start, x), grad_y, arriving, documents.ages, documents.left, documents.numbers,
                dx, partial, *launch.sizes, x.stride(0), x.stride(1), grad_y.stride(0), grad_y.stride(1),
                **launch.options(start, cu_seqlens),
            )  # fmt: skip
        d_weight = partial.sum(0).T.to(weight.dtype).contiguous()
    d_start = arriving.clone() if state is None else _first_gradients(taps.to(work), grad_y, arriving, documents)
    return dx, d_weight, d_start


def rows_for(taps: int) -> int:
    """Tokens of a program: fewer where there are more taps to unroll."""
    return 32 if taps <= 4 else 16 if taps <= 8 else 8


class _Launch:
    """Grid and settings: four bytes per lane and row."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        batch, tokens, channels = x.shape
        self.taps = weight.shape[1]
        self.rows = rows_for(self.taps)
        self.width = 2 * _LANES if x.element_size() == 2 else _LANES
        pieces, blocks = -(-tokens // self.rows), -(-channels // self.width)
        self.grid, self.shares = (batch * pieces * blocks,), batch * pieces
        self.sizes = (tokens, pieces, blocks, channels)

    def options(self, state: Tensor | None, cu_seqlens: Tensor | None) -> dict[str, Any]:
        constants = {"TAPS": self.taps, "ROWS": self.rows, "WIDTH": self.width, "PACKED": cu_seqlens is not None}
        return constants | {"STATE": state is not None and self.taps > 1, "num_warps": 1, "num_stages": 1}


@dataclass(frozen=True)
class _Documents:
    """Where sequences lie in flattened tokens, on the device; the tables by token are for packed ones only."""

    offsets: Tensor
    """[N+1] int64."""
    ages: Tensor
    """[T] int32 tokens of its document before each token."""
    left: Tensor
    """[T] int32 tokens of its document after each token."""
    numbers: Tensor
    """[T] int32 document of each token."""


def _documents(x: Tensor, cu_seqlens: Tensor | None) -> _Documents:
    batch, tokens, _ = x.shape
    if cu_seqlens is None:
        nothing = torch.empty(0, dtype=torch.int32, device=x.device)
        return _Documents(torch.arange(batch + 1, device=x.device) * tokens, nothing, nothing, nothing)
    if cu_seqlens.device.type == "cpu":  # on the host already: looking costs nothing
        cu_seqlens = offsets_of(cu_seqlens, 1, tokens)
    offsets = cu_seqlens.to(x.device, torch.int64, non_blocking=True)
    token = torch.arange(tokens, device=x.device)
    # clamped, so that wrong offsets lead nowhere outside
    numbers = (torch.searchsorted(offsets, token, right=True) - 1).clamp(0, offsets.numel() - 2)
    ages, left = token - offsets[numbers], offsets[numbers + 1] - 1 - token
    return _Documents(offsets, *(table.clamp(min=0).to(torch.int32) for table in (ages, left, numbers)))


def _last_inputs(x: Tensor, state: Tensor | None, documents: _Documents, past: int) -> Tensor:
    """The last inputs [N,past,D] of each document; where it was shorter, of its state or zeros."""
    begin, end = documents.offsets[:-1, None], documents.offsets[1:, None]
    token = end - past + torch.arange(past, device=x.device)  # [N,past]
    place = (token - begin + past).clamp(0, max(past - 1, 0))  # in the state
    shape = (begin.shape[0], past, x.shape[2])
    if state is None:
        earlier = torch.zeros(shape, dtype=work_dtype(x.dtype), device=x.device)
    else:
        earlier = state.gather(1, place[:, :, None].expand(shape))
    rows = _tokens_at(x, token).to(earlier.dtype)
    return torch.where((token >= begin)[:, :, None], rows, earlier)


def _first_gradients(weight: Tensor, grad_y: Tensor, grad_state: Tensor, documents: _Documents) -> Tensor:
    """The gradient of the states [N,W-1,D]: from the first outputs, and from a final state that still holds them."""
    past = weight.shape[1] - 1
    begin, length = documents.offsets[:-1, None], documents.offsets.diff()[:, None]
    row = torch.arange(past, device=grad_y.device)
    kept = row - length  # its place in the final state
    moved = grad_state.gather(1, kept.clamp(0, max(past - 1, 0))[:, :, None].expand(grad_state.shape))
    total = torch.where((kept >= 0)[:, :, None], moved, 0)
    for j in range(1, past + 1):
        token = row - past + j + 0 * begin  # the output that meets this row with tap j
        reached = (token >= 0) & (token < length)
        g = _tokens_at(grad_y, begin + token).to(total.dtype)
        total = total + weight[:, j] * torch.where(reached[:, :, None], g, 0)
    return total


def _tokens_at(x: Tensor, token: Tensor) -> Tensor:
    """Rows [N,n,D] of x [B,T,D] at flattened tokens [N,n]; those outside are any row."""
    batch, tokens, channels = x.shape
    if x.numel() == 0:
        return x.new_zeros((*token.shape, channels))
    token = token.clamp(0, batch * tokens - 1)
    return x[token // tokens, token % tokens]


def _or_nothing(state: Tensor | None, x: Tensor) -> Tensor:
    return torch.empty(0, dtype=work_dtype(x.dtype), device=x.device) if state is None else state


def _channels_last(x: Tensor) -> Tensor:
    """The tensor with contiguous channels; a copy only where needed."""
    x = x.resolve_neg()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
