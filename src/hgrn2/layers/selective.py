"""The scan of Mamba on `ops.gated_scan`, a part of the channels at a time, and how step sizes of both Mambas start.

    h_t[e,n] = exp(Δ_t[e] a[e,n]) h_{t-1}[e,n] + Δ_t[e] x_t[e] w_t[n]      y_t[e] = Σ_n r_t[n] h_t[e,n]

Every channel e has N numbers of state, so gates, inputs and states of all tokens are N times as large as x: 2 GB each
for 32,768 tokens of 1,024 channels with N = 16. They exist for a part of the channels at a time, in the backward too,
which computes them again.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hgrn2 import ops
from hgrn2.ops.backend import full_precision

PART = 1 << 26
"""Numbers of the gates of one part: 256 MB in float32, and about eight tensors of that size at the peak."""
KEPT = 1 << 22
"""Up to so many numbers of all channels nothing is computed twice."""
SMALLEST_STEP = 1e-4
"""Below it no channel starts, as published."""


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""x, Δ [B,T,E], a [E,N] below 0, w and r [B,T,N]; Δ and a in float32 (float64 for float64), Δ = 0 changes nothing."""


def selective_scan(
    parts: Parts, state: Tensor | None, *, scan: Callable[..., Any], cu_seqlens: Tensor | None, output_state: bool
) -> tuple[Tensor, Tensor | None]:
    """The recurrence above.

    Args:
        parts: see `Parts`.
        state: h before the first token [B,E,N] ([N,E,N] of N packed sequences); None is zero.
        scan: `ops.gated_scan`, or what takes its place.
        cu_seqlens: as there.

    Returns:
        y [B,T,E] in Δ's dtype and h after the last token, or None where it is not wanted.
    """
    x, step, decay, write, read = parts
    numbers = step.numel() * decay.shape[1]
    scan = partial(scan, cu_seqlens=cu_seqlens, output_final_state=output_state)
    if numbers <= KEPT:
        return _channels(scan, *parts, state)
    call = partial(_channels, scan)
    if torch.is_grad_enabled():
        call = partial(checkpoint, call, use_reentrant=False, preserve_rng_state=False)
    size = max(1, PART * step.shape[2] // numbers)
    outputs, finals = [], []
    for first in range(0, step.shape[2], size):
        some = slice(first, first + size)
        start = None if state is None else state[:, some]
        found: Any = call(x[..., some], step[..., some], decay[some], write, read, start)
        outputs.append(found[0])
        finals.append(found[1])
    return torch.cat(outputs, -1), torch.cat(finals, 1) if output_state else None


def _channels(
    scan: Callable[..., Any], x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`selective_scan` of all channels given, as a scan of E·N single numbers."""
    shape, work = decay.shape, step.dtype
    gates = (step.unsqueeze(-1) * decay).exp().flatten(2)
    added = ((step * x.to(work)).unsqueeze(-1) * write.to(work).unsqueeze(2)).flatten(2)
    h, final = scan(added, gates, state=None if state is None else state.flatten(1))
    y = _read(h.unflatten(2, shape), read.to(work))
    return y, None if final is None else final.unflatten(1, shape)


def selective_step(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor, *, inplace: bool
) -> tuple[Tensor, Tensor]:
    """One token: x, step [B,E], write, read [B,N], state [B,E,N] -> (y [B,E], state); no gradient."""
    work = step.dtype
    gates = (step.unsqueeze(-1) * decay).exp()
    added = (step * x.to(work)).unsqueeze(-1) * write.to(work).unsqueeze(1)
    h, final = ops.gated_step(added.flatten(1), gates.flatten(1), state=state.flatten(1), inplace=inplace)
    return _read(h.view_as(state), read.to(work)), final.view_as(state)


def _read(h: Tensor, read: Tensor) -> Tensor:
    """h [...,E,N], r [...,N] -> [...,E]; no product of that size, and in the working precision under autocast."""
    with full_precision(h.device):
        return (h @ read.unsqueeze(-1)).squeeze(-1)


def start_steps(bias: Tensor, least: float, most: float) -> None:
    """Biases of the step sizes, in place: softplus of them is even in its logarithm between `least` and `most`."""
    share = torch.rand(bias.shape, device=bias.device, dtype=torch.float64)
    step = torch.exp(share * (math.log(most) - math.log(least)) + math.log(least)).clamp_min(SMALLEST_STEP)
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus


def start_taps(weight: Tensor | None, bias: Tensor | None) -> None:
    """Weight [C,W] and bias [C] of the short convolution, in place: uniform within W^-1/2, as in PyTorch."""
    if weight is not None and bias is not None:
        for part in (weight, bias):
            nn.init.uniform_(part, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
