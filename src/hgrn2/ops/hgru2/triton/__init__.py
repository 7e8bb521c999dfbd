"""The HGRN2 core on Triton kernels: gates, tied key, scan and output from the raw projections, fused.

The kernels are those of `gated_outer_scan.triton`, which compute the gates from projections when asked to; nothing of
the size [B,T,H*K] in float32 touches device memory.
"""

from torch import Tensor

from hgrn2.ops.gated_outer_scan.triton import calls
from hgrn2.ops.hgru2.triton.step import step

__all__ = ["backward", "forward", "step"]


def forward(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, *,
    heads: int, reverse: bool, input_activation: str, output_activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Raw q, f [B,T,H*K], i [B,T,H*V] -> (o [B,T,H*V] in i's dtype, final state [N,H,K,V] float32)."""
    options = {"input_activation": input_activation, "output_activation": output_activation, "scale": scale}
    call = calls.scan(q, f, None, i, lower_bound, state, cu_seqlens, heads=heads, reverse=reverse, **options)
    return calls.forward(call)


def backward(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    grad_o: Tensor, grad_state: Tensor, *, heads: int, reverse: bool, input_activation: str, output_activation: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Gradients of q, f, i in their dtypes, of γ [H*K] (None without a lower bound) and the initial state in
    float32."""
    options = {"input_activation": input_activation, "output_activation": output_activation, "scale": scale}
    call = calls.scan(q, f, None, i, lower_bound, state, cu_seqlens, heads=heads, reverse=reverse, **options)
    g = calls.backward(call, grad_o, grad_state)
    return g.q, g.f, g.v, g.lower_bound, g.state
