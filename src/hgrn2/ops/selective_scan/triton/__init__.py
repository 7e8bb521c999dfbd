"""The selective scan on Triton kernels: x, Δ, w and r are read once, y is written once, states stay in registers."""

import contextlib
from typing import Any

import torch
from torch import Tensor

ROWS = 4
"""Tokens in registers at a time; the states before each so many of them exist during the backward of a layer."""
WIDTH = 32
"""Channels of a program, which is one warp."""
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(y in x's dtype, final state float32); arguments as in `hgrn2.ops.selective_scan`."""
    x, step, decay, write, read, start = _ready(x, step, decay, write, read, state)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = step.new_zeros(x.shape[0], *decay.shape) if state is None else start.clone()
    _scan(x, step, decay, write, read, start, y, step.new_empty(0), final, given=state is not None)
    return y, final


def backward(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None, grad_y: Tensor,
    grad_state: Tensor,
) -> Gradients:  # fmt: skip
    """Gradients of x, step, decay, write, read and the initial state, but the first in float32."""
    from hgrn2.ops.selective_scan.triton.kernels import scan_back

    x, step, decay, write, read, start = _ready(x, step, decay, write, read, state)
    batch, tokens, channels = x.shape
    grad_y, grad_state = grad_y.contiguous(), grad_state.to(step.dtype).contiguous()
    blocks, rounds, count = -(-channels // WIDTH), -(-tokens // ROWS), decay.shape[1]
    dx, d_step = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(step)
    if not x.numel():
        return dx, d_step, torch.zeros_like(decay), torch.zeros_like(write), torch.zeros_like(read), grad_state
    carries = step.new_empty(batch, rounds, count, channels)
    _scan(x, step, decay, write, read, start, x, carries, carries, given=state is not None, carried=True)
    d_decay, d_state = step.new_empty(2, batch, *decay.shape)
    d_write, d_read = step.new_empty(2, blocks, batch, tokens, count)
    with _on(x.device):
        scan_back[(blocks, batch)](
            x, step, decay, write, read, carries, grad_y, grad_state, dx, d_step, d_decay, d_write, d_read, d_state,
            tokens, channels, *x.stride()[:2], *write.stride()[:2], *read.stride()[:2],
            N=count, ROWS=ROWS, WIDTH=WIDTH, num_warps=1, num_stages=1,  # pyright: ignore
        )  # fmt: skip
    return dx, d_step, d_decay.sum(0), d_write.sum(0), d_read.sum(0), d_state


def _scan(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, start: Tensor, *outputs: Tensor,
    given: bool, carried: bool = False,
) -> None:  # fmt: skip
    from hgrn2.ops.selective_scan.triton.kernels import scan

    batch, tokens, channels = x.shape
    if not x.numel():
        return
    strides = (*x.stride()[:2], *write.stride()[:2], *read.stride()[:2])
    with _on(x.device):
        scan[(-(-channels // WIDTH), batch)](
            x, step, decay, write, read, start, *outputs, tokens, channels, *strides,  # pyright: ignore
            STATE=given, CARRIES=carried, N=decay.shape[1], ROWS=ROWS, WIDTH=WIDTH,  # pyright: ignore
            num_warps=1, num_stages=1,  # pyright: ignore
        )  # fmt: skip


def _ready(*tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, w and r with contiguous channels, the others contiguous, Δ's dtype for the state."""
    x, step, decay, write, read, state = tensors
    assert x is not None and step is not None and decay is not None and write is not None and read is not None  # noqa: PT018
    x, write, read = (one if one.stride(-1) == 1 else one.contiguous() for one in (x, write, read))
    start = step.new_empty(0) if state is None else state.to(step.dtype).contiguous()
    return x, step.contiguous(), decay.contiguous(), write, read, start


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
