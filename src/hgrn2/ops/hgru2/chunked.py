"""The HGRN2 core in plain PyTorch: gates, then the chunked outer-product scan, with an explicit backward.

dA = d(log f)/f - dk      dx^f = (1-γ) σ(x) σ(-x) dA      dγ = Σ_t σ(-x) dA      dx^q = dq ⊙ act'(x^q)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hgrn2.ops.activations import activate, slope
from hgrn2.ops.gated_outer_scan import chunked as outer
from hgrn2.ops.options import Inputs, OuterInputs, ScanOptions
from hgrn2.ops.rowwise import seen_by_others
from hgrn2.ops.sequences import ChunkPlan

SMALLEST_LOGIT = -60.0  # log f is taken at max(x, -60): e^-60 vanishes beside any other term, even in float64
ONE_PRODUCT_LOWER_BOUND = 0.3  # 0.3^-64 = e^77 stays inside float32


class Gates(NamedTuple):
    """From x [B*T,H,K] and γ [H,K]: σ(x), σ(-x), key (1-γ)σ(-x), forget gate and its logarithm."""

    up: Tensor
    down: Tensor
    key: Tensor
    forget: Tensor
    log_forget: Tensor


def gates(x: Tensor, lower_bound: Tensor | None) -> Gates:
    """log f without cancellation at either end: log1p(-k) where f is near 1, log(γ + (1-γ)σ(x)) where it is small."""
    lower_bound = x.new_zeros(()) if lower_bound is None else lower_bound
    up, down = x.sigmoid(), (-x).sigmoid()
    key = (1 - lower_bound) * down
    forget = lower_bound + (1 - lower_bound) * x.clamp_min(SMALLEST_LOGIT).sigmoid()
    return Gates(up, down, key, forget, torch.where(key < 0.5, torch.log1p(-key), forget.log()))


def one_product(lower_bound: Tensor | None) -> bool:
    """Whether the lower bound allows one product per chunk; an accelerator takes halving, the answer would cost a host
    sync."""
    return (
        lower_bound is not None
        and lower_bound.device.type == "cpu"
        and bool((lower_bound >= ONE_PRODUCT_LOWER_BOUND).all())
    )


def known_bounded(lower_bound: Tensor | None, keys: int, values: int) -> bool:
    """`one_product` of states so large that the choice of a backend depends on it, where numbers may be looked at."""
    return keys * values >= 256**2 and not seen_by_others(lower_bound) and one_product(lower_bound)


def forward(plan: ChunkPlan, x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """Raw q, f [B*T,H,K], i [B*T,H,V], γ [H,K], state [N,H,K,V], all of one float dtype -> (o [B*T,H,V], state)."""
    _, given = _prepared(x, options)
    return outer.forward(plan, given, one_product=one_product(x.lower_bound))


def _prepared(x: Inputs, options: ScanOptions) -> tuple[Gates, OuterInputs]:
    g = gates(x.f, x.lower_bound)
    query = options.scale * activate(x.q, options.output_activation)
    return g, OuterInputs(query, g.key, activate(x.i, options.input_activation), g.log_forget, x.state)


def backward(
    plan: ChunkPlan, x: Inputs, grad_o: Tensor, grad_state: Tensor, options: ScanOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of q, f, i, γ (None without a lower bound) and the initial state."""
    lower_bound, (g, given) = x.lower_bound, _prepared(x, options)
    dq, dk, dv, dl, d_state = outer.backward(plan, given, grad_o, grad_state, one_product=one_product(lower_bound))
    both = dl / g.forget - dk
    d_lower_bound = None if lower_bound is None else (g.down * both).sum(0)
    df = g.up * g.down * both if lower_bound is None else (1 - lower_bound) * g.up * g.down * both
    dq = options.scale * dq * slope(x.q, options.output_activation)
    return dq, df, dv * slope(x.i, options.input_activation), d_lower_bound, d_state
