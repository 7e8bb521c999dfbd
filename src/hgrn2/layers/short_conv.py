"""The short causal convolution in front of a mixer's recurrence: one call for whole texts, states and padding."""

from torch import Tensor, nn

from hgrn2 import ops
from hgrn2.layers.masking import convolve_kept


def start_conv(weight: Tensor | None) -> None:
    """Starting values of the taps [D,W], if any: uniform within W^-1/2, as of every convolution in PyTorch."""
    if weight is not None:
        nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)


def short_conv(
    x: Tensor, weight: Tensor | None, past: Tensor | None, cu_seqlens: Tensor | None, padding_mask: Tensor | None,
    *, output_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """x [B,T,D] -> (y [B,T,D], the last W-1 inputs [B,W-1,D], or None where they are not wanted).

    Args:
        weight: [D,W]; None leaves x as it is.
        past: the inputs before the first token, as returned by the call before.
        cu_seqlens, keep: as in the mixers.
    """
    if weight is None:
        return x, None
    if padding_mask is not None:
        y, final = convolve_kept(x, weight, padding_mask, past, cu_seqlens)
        return y, final if output_state else None
    return ops.causal_conv(x, weight, state=past, cu_seqlens=cu_seqlens, output_final_state=output_state)
