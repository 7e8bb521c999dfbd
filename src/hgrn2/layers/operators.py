"""What a token mixer computes along its sequence, as one value that may be exchanged for another.

A mixer calls the `operators` it has. These compute a whole sequence in one process; where several processes hold parts
of one sequence, `hgrn2.parallel.context` gives every mixer others with the same methods.
"""

from typing import Any

from torch import Tensor

from hgrn2 import ops
from hgrn2.layers.short_conv import short_conv


class Operators:
    """Of a sequence that this process has whole."""

    def hgru2(self, *tensors: Tensor | None, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `ops.hgru2`."""
        return ops.hgru2(*tensors, **options)  # pyright: ignore[reportArgumentType]

    def gated_outer_scan(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `ops.gated_outer_scan`."""
        return ops.gated_outer_scan(*tensors, **options)

    def gated_scan(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `ops.gated_scan`."""
        return ops.gated_scan(*tensors, **options)

    def selective_scan(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `ops.selective_scan`."""
        return ops.selective_scan(*tensors, **options)

    def short_conv(self, *tensors: Tensor | None, output_state: bool) -> tuple[Tensor, Tensor | None]:
        """As `layers.short_conv`."""
        return short_conv(*tensors, output_state=output_state)  # pyright: ignore[reportArgumentType]

    def attend(
        self, attention: Any, qkv: Tensor, *, cu_seqlens: Tensor | None, state: Any, padding_mask: Tensor | None,
        output_state: bool,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """As `Attention.attend`."""
        return attention.attend(qkv, cu_seqlens, state, padding_mask, output_state)


WHOLE = Operators()
