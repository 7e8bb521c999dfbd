"""The backends of the general scan, in the order in which `auto` prefers them.

`forward` takes (q, k, v, log_f, state, cu_seqlens, reverse, scale) and returns (o, final state); `backward` takes the
two incoming gradients before the options, and returns gradients of q, k, v, log_f and the state.
"""

from typing import Any

import torch
from torch import Tensor

from hgrn2.ops.backend import Backend, Reference, full_precision, work_dtype
from hgrn2.ops.gated_outer_scan import chunked, reference
from hgrn2.ops.native.support import NativeBackend
from hgrn2.ops.sequences import offsets_of, plan_chunks
from hgrn2.ops.triton_support import TritonBackend

Maybe = Tensor | None
Gradients = tuple[Tensor, ...]


class Triton(TritonBackend):
    """Kernels that `hgru2` shares."""

    products = True

    def forward(self, *tensors: Any) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.gated_outer_scan import triton

        *given, reverse, scale = tensors
        return triton.forward(*given, reverse=reverse, scale=scale)

    def backward(self, *tensors: Any) -> Gradients:
        from hgrn2.ops.gated_outer_scan import triton

        *given, reverse, scale = tensors
        return triton.backward(*given, reverse=reverse, scale=scale)


class Native(NativeBackend):
    """C++."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Maybe, cu: Maybe, reverse: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.native import outer

        xq, xk, xv, xf = _rows(v.dtype, q, k, v, log_f)
        offsets, start = offsets_of(cu, *q.shape[:2]), _start(state, v.dtype)
        options = {"heads": q.shape[2], "reverse": reverse, "scale": scale}
        o, final = outer.scan_forward(xq, xk, xv, xf, start, offsets, **options)
        return o.reshape(v.shape).to(v.dtype), final

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Maybe, cu: Maybe, grad_o: Tensor,
        grad_state: Tensor, reverse: bool, scale: float,
    ) -> Gradients:  # fmt: skip
        from hgrn2.ops.native import outer

        xq, xk, xv, xf, do = _rows(v.dtype, q, k, v, log_f, grad_o)
        offsets, start, ds = offsets_of(cu, *q.shape[:2]), _start(state, v.dtype), _start(grad_state, v.dtype)
        options = {"heads": q.shape[2], "reverse": reverse, "scale": scale}
        return outer.scan_backward(xq, xk, xv, xf, start, do, ds, offsets, **options)


def _rows(dtype: torch.dtype, *tensors: Tensor) -> Any:
    return [x.to(work_dtype(dtype)).flatten(0, 1).flatten(1).contiguous() for x in tensors]


def _start(state: Maybe, dtype: torch.dtype) -> Maybe:
    return None if state is None else state.to(work_dtype(dtype)).contiguous()


class Chunked(Backend):
    """Plain PyTorch in products of chunks."""

    name, plain = "chunked", True

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Maybe, cu: Maybe, reverse: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        plan, xq, *rest = self._arguments(q, k, v, log_f, state, cu, reverse)
        with full_precision(q.device):
            o, final = chunked.forward(plan, scale * xq, *rest, one_product=False)
        return o.reshape(v.shape).to(v.dtype), final

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Maybe, cu: Maybe, grad_o: Tensor,
        grad_state: Tensor, reverse: bool, scale: float,
    ) -> Gradients:  # fmt: skip
        plan, xq, xk, xv, xf, start = self._arguments(q, k, v, log_f, state, cu, reverse)
        do, ds = (x.to(work_dtype(v.dtype)) for x in (grad_o.flatten(0, 1), grad_state))
        with full_precision(q.device):
            dq, *others = chunked.backward(plan, scale * xq, xk, xv, xf, start, do, ds.contiguous(), one_product=False)
        return scale * dq, *others

    def _arguments(self, q, k, v, log_f, state, cu, reverse) -> Any:  # type: ignore[no-untyped-def]
        work, offsets = work_dtype(v.dtype), offsets_of(cu, *q.shape[:2])
        shape = (offsets.numel() - 1, q.shape[2], q.shape[3], v.shape[3])
        start = v.new_zeros(shape, dtype=work) if state is None else state.to(work)
        tokens = (x.to(work).flatten(0, 1) for x in (q, k, v, log_f))
        return plan_chunks(offsets, chunked.CHUNK, reverse, q.device), *tokens, start

    def step(self, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor, scale: float) -> Tensor:
        """One token; changes the state."""
        with full_precision(q.device):
            query, key, value, log_gate = (x.to(state.dtype) for x in (q, k, v, log_f))
            state.mul_(log_gate.exp().unsqueeze(-1)).add_(key.unsqueeze(-1) * value.unsqueeze(-2))
            return (scale * (query.unsqueeze(-2) @ state).squeeze(-2)).to(v.dtype)


class Definition(Reference):
    """The loop over tokens."""

    forward = staticmethod(reference.gated_outer_scan)


CHUNKED = Chunked()
BACKENDS = (Triton(), Native(), CHUNKED, Definition())
