"""The outer-product scan on Triton kernels, for given keys and gates; `hgru2.triton` calls the same kernels."""

from torch import Tensor

from hgrn2.ops.gated_outer_scan.triton import calls


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, *,
    reverse: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q, k, log_f [B,T,H,K], v [B,T,H,V] -> (o [B,T,H,V] in v's dtype, final state [N,H,K,V] float32)."""
    o, final = calls.forward(_call(q, k, v, log_f, state, cu_seqlens, reverse, scale))
    return o.view(v.shape), final


def backward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    grad_o: Tensor, grad_state: Tensor, *, reverse: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_f in their dtypes, and of the initial state in float32."""
    call = _call(q, k, v, log_f, state, cu_seqlens, reverse, scale)
    g = calls.backward(call, grad_o.flatten(2), grad_state)
    assert g.k is not None
    return g.q.view(q.shape), g.k.view(k.shape), g.v.view(v.shape), g.f.view(log_f.shape), g.state


def _call(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    reverse: bool, scale: float,
) -> calls.Scan:  # fmt: skip
    xq, xf, xk, xv = (x.flatten(2) for x in (q, log_f, k, v))
    return calls.scan(xq, xf, xk, xv, None, state, cu_seqlens, heads=q.shape[2], reverse=reverse, scale=scale)
