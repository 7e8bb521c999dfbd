"""The element-wise scan in plain PyTorch: doubling inside chunks of C tokens, a short loop over chunks.

Inside a chunk the pair (F, X) stands for h ← F h + X; step s = 1, 2, 4, … composes each pair with the one s tokens
earlier: X_t ← X_t + F_t X_{t-s}, F_t ← F_t F_{t-s}. Only products and sums of the given values: exact for every gate,
real and complex. The backward is the same scan run the other way over gates shifted by one token:

    g_t = dh_t + f̄_{t+1} g_{t+1}      dx = g      df_t = g_t h̄_{t-1}
"""

import torch
from torch import Tensor

from hgrn2.ops.sequences import ChunkPlan, plan_chunks

CHUNK = 64


def _within(x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """Local scans of [M,1,C,D] from a zero state, and the decay from each chunk's start to each token."""
    step = 1
    while step < x.shape[2]:
        x = torch.cat((x[:, :, :step], x[:, :, step:] + f[:, :, step:] * x[:, :, :-step]), 2)
        f = torch.cat((f[:, :, :step], f[:, :, step:] * f[:, :, :-step]), 2)
        step *= 2
    return x, f


def forward(plan: ChunkPlan, x: Tensor, f: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """x, f [B*T,1,D], state [N,D] -> (h [B*T,1,D], final state [N,D])."""
    gates = plan.gather(f)
    if plan.padding is not None:  # a padding slot leaves the state as it is
        gates = gates + plan.padding.view(-1, 1, plan.chunk, 1).to(gates.dtype)
    local, decay = _within(plan.gather(x), gates)
    running = state.index_select(0, plan.order)
    for chunks in plan.ranks():
        n = chunks.stop - chunks.start
        local[chunks] += decay[chunks] * running[:n, None, None]
        running[:n] = local[chunks, 0, -1]
    return plan.scatter(local), torch.empty_like(running).index_copy_(0, plan.order, running)


def shift_gates(f: Tensor, offsets: Tensor, reverse: bool) -> Tensor:
    """f of the token that follows in the scan [B*T,1,D]; ones at the last token of every sequence."""
    rolled = f.roll(1 if reverse else -1, 0)
    ends = offsets[:-1] if reverse else offsets[1:] - 1
    rolled[ends[offsets.diff() > 0].to(f.device)] = 1
    return rolled


def backward(
    f: Tensor, h: Tensor, start: Tensor | None, grad: Tensor, grad_state: Tensor, offsets: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """f, h and the gradient of h [B*T,D], states [N,D] -> gradients of x, f and the initial state."""
    # conj_physical throughout: PyTorch switches lazy conjugation off while it traces, and x.conj() would then be x
    plan = plan_chunks(offsets, CHUNK, not reverse, f.device)
    following = shift_gates(f.unsqueeze(1), offsets, reverse).conj_physical()
    g, _ = forward(plan, grad.unsqueeze(1), following, grad_state)
    g = g.squeeze(1)
    first = (offsets[1:] - 1 if reverse else offsets[:-1])[offsets.diff() > 0].to(f.device)
    some = (offsets.diff() > 0).to(f.device)
    before = h.roll(-1 if reverse else 1, 0)
    before[first] = 0 if start is None else start[some]
    d_start = grad_state.clone()
    d_start[some] = f[first].conj_physical() * g[first]
    return g, g * before.conj_physical(), d_start
