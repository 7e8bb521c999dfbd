"""The backends of RMSNorm: `forward` takes (x, weight, eps)."""

import torch
from torch import Tensor

from hgrn2.ops.backend import Reference
from hgrn2.ops.rowwise import RowBackend, sums_of


class Native(RowBackend):
    """C++. `forward` returns the factor of every row, too, which `backward` takes."""

    def forward(self, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.native import call

        rows, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        scale = x.new_empty(x.shape[:-1])
        weight = None if weight is None else weight.contiguous()
        call.rowwise("rms_forward", rows, (rows, weight, y, scale), eps=eps)
        return y, scale

    def backward(self, x: Tensor, weight: Tensor | None, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        from hgrn2.ops.native import call

        rows, dx = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        parts = sums_of(scale.numel())
        partial = None if weight is None else x.new_zeros(parts, x.shape[-1])
        weight = None if weight is None else weight.contiguous()
        call.rowwise("rms_backward", rows, (rows, weight, scale, grad.contiguous(), dx, partial), parts=parts)
        return dx, None if partial is None else partial.sum(0)


class Definition(Reference):
    """PyTorch's own, which is fused on a GPU."""

    def forward(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


BACKENDS = (Native(), Definition())
