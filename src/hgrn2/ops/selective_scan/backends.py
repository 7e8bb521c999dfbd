"""The backends of the selective scan, in the order in which `auto` prefers them.

`forward` takes (x, step, decay, write, read, state, cu_seqlens) and returns (y, final state); `backward` takes the same
without offsets and the two incoming gradients, and returns gradients of all six.
"""

from typing import Any

from torch import Tensor

from hgrn2.ops.backend import Backend, Call, Reference
from hgrn2.ops.selective_scan import chunked, reference
from hgrn2.ops.triton_support import TritonBackend

MOST_NUMBERS = 32
"""Of the state of a channel: what a thread holds in registers."""


class Triton(TritonBackend):
    """Kernels that keep the state in registers."""

    def supports(self, call: Call) -> tuple[bool, str]:
        """Not packed documents, nor states of many numbers (keys is N, values whether there are documents)."""
        able, why = super().supports(call._replace(keys=0, values=0))
        if able and call.values:
            return False, "triton reads no packed documents in this operator"
        if able and call.keys > MOST_NUMBERS:
            return False, f"triton holds states of at most {MOST_NUMBERS} numbers per channel, not {call.keys}"
        return able, why

    def forward(self, *tensors: Any) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.selective_scan import triton

        return triton.forward(*tensors[:6])

    def backward(self, *tensors: Any) -> tuple[Tensor, ...]:
        from hgrn2.ops.selective_scan import triton

        return triton.backward(*tensors)


class Chunked(Backend):
    """`gated_scan` over all numbers, a part of the channels at a time."""

    name, plain, composed = "chunked", True, True
    forward = staticmethod(chunked.forward)


class Definition(Reference):
    """The loop over tokens."""

    forward = staticmethod(reference.selective_scan)


BACKENDS = (Triton(), Chunked(), Definition())
