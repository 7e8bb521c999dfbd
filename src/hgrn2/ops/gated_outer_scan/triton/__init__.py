"""The outer-product scan on Triton kernels, for given keys and gates; `hgru2.triton` calls the same kernels."""

from torch import Tensor

from hgrn2.ops.gated_outer_scan.triton import calls
from hgrn2.ops.options import Inputs, OuterInputs, OuterOptions, ScanOptions


def forward(x: OuterInputs, options: OuterOptions) -> tuple[Tensor, Tensor]:
    """q, k, log_f [B,T,H,K], v [B,T,H,V] -> (o [B,T,H,V] in v's dtype, final state [N,H,K,V] float32)."""
    o, final = calls.forward(_call(x, options))
    return o.view(x.v.shape), final


def backward(
    x: OuterInputs, grad_o: Tensor, grad_state: Tensor, options: OuterOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_f in their dtypes, and of the initial state in float32."""
    g = calls.backward(_call(x, options), grad_o.flatten(2), grad_state)
    assert g.k is not None
    return g.q.view(x.q.shape), g.k.view(x.k.shape), g.v.view(x.v.shape), g.f.view(x.log_f.shape), g.state


def _call(x: OuterInputs, options: OuterOptions) -> calls.Scan:
    q, f, k, v = (y.flatten(2) for y in (x.q, x.log_f, x.k, x.v))
    inputs = Inputs(q, f, v, None, x.state, x.cu_seqlens)
    return calls.scan(inputs, ScanOptions(x.q.shape[2], options.reverse, "none", "none", options.scale), k)
