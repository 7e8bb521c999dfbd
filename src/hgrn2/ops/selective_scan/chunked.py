"""The selective scan as `gated_scan` over E·N single numbers, a part of the channels at a time.

Gates, inputs and states of all tokens are N times as large as x: 2 GB each for 32,768 tokens of 1,024 channels with N =
16. They exist for a part of the channels at a time, in the backward too, which computes them again.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hgrn2 import ops
from hgrn2.ops.backend import full_precision

PART = 1 << 26
"""Numbers of the gates of one part: 256 MB in float32, and about eight tensors of that size at the peak."""
KEPT = 1 << 22
"""Up to so many numbers of all channels nothing is computed twice."""


def forward(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None, cu: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(y, final state); arguments as in `hgrn2.ops.selective_scan`."""
    numbers = step.numel() * decay.shape[1]
    if numbers <= KEPT:
        return _channels(cu, x, step, decay, write, read, state)
    call: Any = partial(_channels, cu)
    if torch.is_grad_enabled():
        call = partial(checkpoint, call, use_reentrant=False, preserve_rng_state=False)
    size = max(1, PART * step.shape[2] // numbers)
    found = []
    for first in range(0, step.shape[2], size):
        some = slice(first, first + size)
        start = None if state is None else state[:, some]
        found.append(call(x[..., some], step[..., some], decay[some], write, read, start))
    outputs, finals = zip(*found, strict=True)
    return torch.cat(outputs, -1), torch.cat(finals, 1)


def products(x: Tensor, step: Tensor, decay: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """Δ x w and exp(Δ a), [...,E,N] in step's dtype."""
    gates = (step.unsqueeze(-1) * decay).exp()
    return (step * x.to(step.dtype)).unsqueeze(-1) * write.to(step.dtype).unsqueeze(-2), gates


def _channels(
    cu: Tensor | None, x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    added, gates = products(x, step, decay, write)
    start = None if state is None else state.flatten(1)
    h, final = ops.gated_scan(added.flatten(2), gates.flatten(2), state=start, cu_seqlens=cu)
    assert final is not None
    with full_precision(h.device):  # no product of that size, and in the working precision under autocast
        y = (h.unflatten(2, decay.shape) @ read.to(h.dtype).unsqueeze(-1)).squeeze(-1)
    return y.to(x.dtype), final.unflatten(1, decay.shape)
