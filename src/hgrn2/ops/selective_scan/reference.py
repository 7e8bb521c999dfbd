"""The definition, one token after the other."""

from itertools import pairwise

import torch
from torch import Tensor

from hgrn2.ops.sequences import offsets_of


def selective_scan(
    x: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None, cu: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(y, final state); arguments as in `hgrn2.ops.selective_scan`."""
    offsets = offsets_of(cu, *x.shape[:2]).tolist()
    tokens = [part.to(step.dtype).flatten(0, 1) for part in (x, step, write, read)]
    outputs, finals = [], []
    for n, (begin, end) in enumerate(pairwise(offsets)):
        h = decay.new_zeros(decay.shape) if state is None else state[n].to(step.dtype)
        for t in range(begin, end):
            xt, dt, w, r = (part[t] for part in tokens)
            h = (dt.unsqueeze(1) * decay).exp() * h + (dt * xt).unsqueeze(1) * w
            outputs.append(h @ r)
        finals.append(h)
    y = torch.stack(outputs) if outputs else step.new_zeros(0, x.shape[2])
    return y.view(x.shape).to(x.dtype), torch.stack(finals) if finals else step.new_zeros(0, *decay.shape)
