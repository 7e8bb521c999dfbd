"""The backends of the short convolution, in the order in which `auto` prefers them.

`forward` takes (x, weight, state, cu_seqlens) and returns (y in x's dtype, last inputs); `backward` takes the two
incoming gradients besides, and returns gradients of x, weight and the state.
"""

from typing import Any

import torch
from torch import Tensor

from hgrn2.ops.backend import Backend, Reference, work_dtype
from hgrn2.ops.causal_conv import chunked, reference
from hgrn2.ops.native.support import NativeBackend
from hgrn2.ops.sequences import offsets_of
from hgrn2.ops.triton_support import TritonBackend

Maybe = Tensor | None


class Triton(TritonBackend):
    """One kernel each way."""

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.causal_conv import triton

        return triton.forward(*arguments)

    def backward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        from hgrn2.ops.causal_conv import triton

        return triton.backward(*arguments)


class Native(NativeBackend):
    """C++."""

    def forward(self, x: Tensor, weight: Tensor, state: Maybe, cu: Maybe) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.native import call

        work, width, offsets = work_dtype(x.dtype), weight.shape[1], offsets_of(cu, *x.shape[:2])
        x_work, taps = x.to(work).contiguous(), weight.to(work).contiguous()
        start = None if state is None else state.to(work).contiguous()
        y, final = torch.empty_like(x_work), x_work.new_empty(offsets.numel() - 1, width - 1, x.shape[2])
        call.elementwise("conv_forward", work, offsets, x.shape[2], (x_work, taps, start, y, final), width=width)
        return y.to(x.dtype), final

    def backward(
        self, x: Tensor, weight: Tensor, state: Maybe, cu: Maybe, grad_y: Tensor, grad_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from hgrn2.ops.native import call

        work, width, offsets = work_dtype(x.dtype), weight.shape[1], offsets_of(cu, *x.shape[:2])
        x_work, taps, dy, arriving = (y.to(work).contiguous() for y in (x, weight, grad_y, grad_state))
        start = None if state is None else state.to(work).contiguous()
        dx, partial = torch.empty_like(x_work), x_work.new_empty(offsets.numel() - 1, x.shape[2], width)
        d_start = torch.zeros_like(arriving)
        tensors = (x_work, taps, start, dy, arriving, dx, partial, d_start)
        call.elementwise("conv_backward", work, offsets, x.shape[2], tensors, width=width)
        return dx.to(x.dtype), partial.sum(0).to(weight.dtype), d_start


class Chunked(Backend):
    """Plain PyTorch, differentiated by autograd."""

    name, plain, composed = "chunked", True, True
    forward = staticmethod(chunked.causal_conv)

    def step(self, x: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token; returns the new state."""
        work = work_dtype(x.dtype)
        window = torch.cat((state.to(work), x.to(work).unsqueeze(1)), 1)
        y = (window * weight.flip(1).T.to(work)).sum(1)
        return y.to(x.dtype), window[:, 1:].to(state.dtype, copy=True)


class Definition(Reference):
    """W shifted products."""

    forward = staticmethod(reference.causal_conv)


CHUNKED = Chunked()
BACKENDS = (Triton(), Native(), CHUNKED, Definition())
