"""The backends of the element-wise scan, in the order in which `auto` prefers them.

`forward` takes (x, f, state, cu_seqlens, reverse) and returns (h, final state, carries). triton returns h in x's dtype,
and as carries the states every few tokens from which its backward computes h again; the others return h in the working
dtype, which their backward reads as it was computed, and no carries. `backward` takes that after x and f, then state,
cu_seqlens, the two incoming gradients and reverse, and returns gradients of x, f and the state.
"""

from typing import Any

import torch
from torch import Tensor

from hgrn2.ops.backend import Backend, Reference, work_dtype
from hgrn2.ops.gated_scan import chunked, reference
from hgrn2.ops.native.support import NativeBackend
from hgrn2.ops.sequences import offsets_of, plan_chunks
from hgrn2.ops.triton_support import TritonBackend

Maybe = Tensor | None
Three = tuple[Tensor, Tensor, Tensor]


class Triton(TritonBackend):
    """Kernels that read every byte once."""

    complex = True

    def carries(self, x: Tensor) -> tuple[int, ...] | None:
        """Their shape."""
        from hgrn2.ops.gated_scan import triton

        return triton.carries_shape(x)

    def forward(self, *arguments: Any) -> Three:
        from hgrn2.ops.gated_scan import triton

        return triton.forward(*arguments)

    def backward(self, *arguments: Any) -> Three:
        from hgrn2.ops.gated_scan import triton

        return triton.backward(*arguments)


class _Flat(Backend):
    """Tokens of all sequences in one row, in the working dtype."""

    _scan: Any
    _back: Any

    def carries(self, x: Tensor) -> tuple[int, ...] | None:
        """None: h itself is kept."""
        return None

    def forward(self, x: Tensor, f: Tensor, state: Maybe, cu: Maybe, reverse: bool) -> Three:
        offsets = offsets_of(cu, *x.shape[:2])
        added, gate = (y.to(work_dtype(x.dtype)).flatten(0, 1).contiguous() for y in (x, f))
        start = None if state is None else state.to(added.dtype).contiguous()
        h, final = self._scan(added, gate, start, offsets, reverse)
        return h.reshape(x.shape), final, h.new_empty(0)

    def backward(
        self, x: Tensor, f: Tensor, kept: Tensor, state: Maybe, cu: Maybe, grad_h: Tensor, grad_state: Tensor,
        reverse: bool,
    ) -> Three:  # fmt: skip
        work, offsets = kept.dtype, offsets_of(cu, *x.shape[:2])
        gate, h, grad = (y.to(work).flatten(0, 1).contiguous() for y in (f, kept, grad_h))
        start = None if state is None else state.to(work).contiguous()
        return self._back(gate, h, start, grad, grad_state.to(work).contiguous(), offsets, reverse)


class Native(_Flat, NativeBackend):
    """C++."""

    def _scan(self, x: Tensor, f: Tensor, start: Maybe, offsets: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.native import call

        h, final = torch.empty_like(x), x.new_empty(offsets.numel() - 1, x.shape[1])
        tensors = (x, f, start, h, final)
        call.elementwise("scan_forward", x.dtype, offsets, x.shape[1], tensors, reverse=reverse)
        return h, final

    def _back(
        self, f: Tensor, h: Tensor, start: Maybe, grad: Tensor, grad_state: Tensor, offsets: Tensor, reverse: bool
    ) -> Three:
        from hgrn2.ops.native import call

        results = (torch.empty_like(h), torch.empty_like(h), torch.empty_like(grad_state))
        tensors = (f, h, start, grad, grad_state, *results)
        call.elementwise("scan_backward", h.dtype, offsets, h.shape[1], tensors, reverse=reverse)
        return results


class Chunked(_Flat):
    """Plain PyTorch: doubling inside of chunks."""

    name, plain = "chunked", True

    def _scan(self, x: Tensor, f: Tensor, start: Maybe, offsets: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        plan = plan_chunks(offsets, chunked.CHUNK, reverse, x.device)
        start = x.new_zeros(offsets.numel() - 1, x.shape[1]) if start is None else start
        return chunked.forward(plan, x.unsqueeze(1), f.unsqueeze(1), start)

    _back = staticmethod(chunked.backward)

    def step(self, x: Tensor, f: Tensor, state: Tensor) -> Tensor:
        """One token; changes the state."""
        return state.mul_(f.to(state.dtype)).add_(x.to(state.dtype)).to(x.dtype, copy=True)


class Definition(Reference):
    """The loop over tokens."""

    forward = staticmethod(reference.gated_scan)


CHUNKED = Chunked()
BACKENDS = (Triton(), Native(), CHUNKED, Definition())
