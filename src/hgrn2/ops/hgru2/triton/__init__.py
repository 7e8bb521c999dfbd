"""The HGRN2 core on Triton kernels: gates, tied key, scan and output from the raw projections, fused.

The kernels are those of `gated_outer_scan.triton`, which compute the gates from projections when asked to; nothing of
the size [B,T,H*K] in float32 touches device memory.
"""

from torch import Tensor

from hgrn2.ops.gated_outer_scan.triton import calls
from hgrn2.ops.hgru2.triton.step import step
from hgrn2.ops.options import Inputs, ScanOptions

__all__ = ["backward", "forward", "step"]


def forward(x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """Raw q, f [B,T,H*K], i [B,T,H*V] -> (o [B,T,H*V] in i's dtype, final state [N,H,K,V] float32)."""
    return calls.forward(calls.scan(x, options))


def backward(
    x: Inputs, grad_o: Tensor, grad_state: Tensor, options: ScanOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of q, f, i in their dtypes, of γ [H*K] (None without a lower bound) and the initial state in
    float32."""
    g = calls.backward(calls.scan(x, options), grad_o, grad_state)
    return g.q, g.f, g.v, g.lower_bound, g.state
