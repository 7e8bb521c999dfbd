"""The backends of head and loss: what computes the softmax of a chunk of logits (`chunked.Rows`)."""

from typing import Any

from torch import Tensor

from hgrn2.ops.backend import Backend
from hgrn2.ops.linear_cross_entropy import chunked
from hgrn2.ops.triton_support import TritonBackend


class Triton(TritonBackend):
    """One kernel."""

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See `chunked.forward`."""
        from hgrn2.ops.linear_cross_entropy import triton

        return chunked.forward(*arguments, rows=triton.rows)


class Chunked(Backend):
    """Plain PyTorch."""

    name, plain = "chunked", True

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See `chunked.forward`."""
        return chunked.forward(*arguments, rows=chunked.rows)


BACKENDS = (Triton(), Chunked())
