"""The scan in chunks of C tokens with matrix products, in plain PyTorch; exact for every gate, no quotient of decays.

With L = log f of one chunk, S the state at its start and G the gradient that arrives after its last token:

    pb_t = exp(Σ_{s≤t} L_s)    w_t = exp(Σ_{s>t} L_s)    tot = exp(Σ L)
    o_t  = (q_t pb_t) S + Σ_{j≤t} P_tj v_j               S ← Diag(tot) S + (k w)ᵀ v

P_tj = Σ_d q_td k_jd exp(Σ_{j<s≤t} L_sd) comes from halving: blocks of C, C/2, …, 2 are cut in the middle, rows R of the
second half meet columns C of the first with the decay split at the boundary, so every exponent is ≤ 0. Where every
gate of the call is at least 0.3 (the lower bound says so), one product with the split at the chunk's start replaces the
halving: 0.3^-64 = e^77 fits. All sums run outward from a boundary; two long running sums are never subtracted.
The backward is explicit and counts, for d log f, only pairs that cross a token (docs/math.md).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hgrn2.ops.options import OuterInputs
from hgrn2.ops.sequences import ChunkPlan

CHUNK = 64


class Halves(NamedTuple):
    """One level of halving: views [M,H,C/b,b/2,·] pick columns (first halves) and rows (second halves)."""

    block: int
    to_boundary: Tensor
    """e_C: decay from each column to the boundary."""
    from_boundary: Tensor
    """e_R: decay from the boundary to each row, inclusive."""

    def columns(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, 2, self.block // 2))[:, :, :, 0]

    def rows(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, 2, self.block // 2))[:, :, :, 1]


def prefix(x: Tensor) -> Tensor:
    """Σ_{s≤t} along the token axis (-2)."""
    return x.cumsum(-2)


def prefix_exclusive(x: Tensor) -> Tensor:
    """Σ_{s<t}: a shift of the inclusive sum, never a difference."""
    return torch.nn.functional.pad(x[..., :-1, :].cumsum(-2), (0, 0, 1, 0))


def suffix(x: Tensor) -> Tensor:
    """Σ_{s≥t}."""
    return x.flip(-2).cumsum(-2).flip(-2)


def suffix_exclusive(x: Tensor) -> Tensor:
    """Σ_{s>t}."""
    return torch.nn.functional.pad(suffix(x[..., 1:, :]), (0, 0, 0, 1))


def halvings(log_f: Tensor) -> Iterator[Halves]:
    """Levels from the whole chunk [M,H,C,K] down to pairs of neighbours."""
    block = log_f.shape[2]
    while block > 1:
        halves = log_f.unflatten(2, (-1, 2, block // 2))
        yield Halves(block, suffix_exclusive(halves[:, :, :, 0]).exp(), prefix(halves[:, :, :, 1]).exp())
        block //= 2


class ChunkInputs(NamedTuple):
    """Tokens laid out in chunks, and the decays of each chunk."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_f: Tensor
    pb: Tensor
    w: Tensor
    tot: Tensor


def _lay_out(plan: ChunkPlan, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> ChunkInputs:
    q, k, v, log_f = (plan.gather(x) for x in (q, k, v, log_f))
    sums = prefix(log_f)
    return ChunkInputs(q, k, v, log_f, sums.exp(), suffix_exclusive(log_f).exp(), sums[:, :, -1].exp())


def _states(plan: ChunkPlan, x: ChunkInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """State at the start of every chunk [M,H,K,V], and the final state [N,H,K,V]; `state` in the plan's order."""
    starts = (x.k * x.w).mT @ x.v
    running = state.clone()
    for chunks in plan.ranks():
        n = chunks.stop - chunks.start
        added = starts[chunks].clone()
        starts[chunks] = running[:n]
        running[:n] = x.tot[chunks].unsqueeze(-1) * running[:n] + added
    return starts, running


def _unsort(plan: ChunkPlan, x: Tensor) -> Tensor:
    return torch.empty_like(x).index_copy_(0, plan.order, x)


def forward(plan: ChunkPlan, given: OuterInputs, *, one_product: bool) -> tuple[Tensor, Tensor]:
    """q, k, log_f [B*T,H,K], v [B*T,H,V], state [N,H,K,V], all of one float dtype -> (o [B*T,H,V], state [N,H,K,V])."""
    x, state = _lay_out(plan, *given[:4]), given.state
    assert state is not None
    starts, final = _states(plan, x, state.index_select(0, plan.order))
    o = (x.q * x.pb) @ starts + (x.q * x.k).sum(-1, keepdim=True) * x.v
    if one_product:
        o += ((x.q * x.pb) @ (x.k / x.pb).mT).tril_(-1) @ x.v
    else:
        for cut in halvings(x.log_f):
            scores = (cut.rows(x.q) * cut.from_boundary) @ (cut.columns(x.k) * cut.to_boundary).mT
            cut.rows(o).add_(scores @ cut.columns(x.v))
    return plan.scatter(o), _unsort(plan, final)


def backward(
    plan: ChunkPlan, given: OuterInputs, grad_o: Tensor, grad_state: Tensor, *, one_product: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_f and the initial state; chunk states are computed again, not kept."""
    x, state = _lay_out(plan, *given[:4]), given.state
    assert state is not None
    do = plan.gather(grad_o)
    starts, _ = _states(plan, x, state.index_select(0, plan.order))
    into = (x.q * x.pb).mT @ do
    after, running = torch.empty_like(starts), grad_state.index_select(0, plan.order)
    for chunks in reversed(plan.ranks()):
        n = chunks.stop - chunks.start
        after[chunks] = running[:n]
        running[:n] = x.tot[chunks].unsqueeze(-1) * running[:n] + into[chunks]

    dq, dk = x.pb * (do @ starts.mT), x.w * (x.v @ after.mT)
    dv = (x.k * x.w) @ after
    dl = x.tot.unsqueeze(-2) * (starts * after).sum(-1).unsqueeze(-2) + suffix(x.q * dq) + prefix_exclusive(x.k * dk)
    diagonal = (do * x.v).sum(-1, keepdim=True)
    dv += (x.q * x.k).sum(-1, keepdim=True) * do
    dq += diagonal * x.k
    dk += diagonal * x.q
    within = _backward_one_product if one_product else _backward_halving
    within(x, do, dq, dk, dv, dl)
    dq, dk, dv, dl = (plan.scatter(g) for g in (dq, dk, dv, dl))
    return dq, dk, dv, dl, _unsort(plan, running)


def _backward_halving(x: ChunkInputs, do: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, dl: Tensor) -> None:
    """Add each block's pairs (rows i of its second half, columns j of its first) to the gradients."""
    for cut in halvings(x.log_f):
        q_hat, k_hat = cut.rows(x.q) * cut.from_boundary, cut.columns(x.k) * cut.to_boundary
        scores, d_scores = q_hat @ k_hat.mT, cut.rows(do) @ cut.columns(x.v).mT
        a = cut.from_boundary * (d_scores @ k_hat)
        c = cut.to_boundary * (d_scores.mT @ q_hat)
        cut.rows(dq).add_(a)
        cut.columns(dk).add_(c)
        cut.columns(dv).add_(scores.mT @ cut.rows(do))
        cut.rows(dl).add_(suffix(cut.rows(x.q) * a))
        cut.columns(dl).add_(prefix_exclusive(cut.columns(x.k) * c))


def _backward_one_product(x: ChunkInputs, do: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, dl: Tensor) -> None:
    """The same pairs with the split at the chunk's start; the sums use the very factors of the product."""
    q_hat, k_hat = x.q * x.pb, x.k / x.pb
    scores, d_scores = (q_hat @ k_hat.mT).tril_(-1), (do @ x.v.mT).tril_(-1)
    a, c = d_scores @ k_hat, d_scores.mT @ q_hat
    dq += x.pb * a
    dk += c / x.pb
    dv += scores.mT @ do
    dl += suffix(q_hat * a - k_hat * c)
