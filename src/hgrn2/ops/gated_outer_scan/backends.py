"""The backends of the general scan, in the order in which `auto` prefers them.

`forward` takes (OuterInputs, OuterOptions) and returns (o, final state); `backward` takes the two incoming gradients
before the options, and returns gradients of q, k, v, log_f and the state.
"""

import torch
from torch import Tensor

from hgrn2.ops.backend import Backend, Reference, full_precision
from hgrn2.ops.gated_outer_scan import chunked, reference
from hgrn2.ops.native.support import NativeBackend
from hgrn2.ops.options import OuterInputs, OuterOptions, ScanOptions
from hgrn2.ops.sequences import ChunkPlan, offsets_of, plan_chunks
from hgrn2.ops.triton_support import TritonBackend

Gradients = tuple[Tensor, ...]


class Triton(TritonBackend):
    """Kernels that `hgru2` shares."""

    products = True

    def forward(self, x: OuterInputs, options: OuterOptions) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.gated_outer_scan import triton

        return triton.forward(x, options)

    def backward(self, x: OuterInputs, grad_o: Tensor, grad_state: Tensor, options: OuterOptions) -> Gradients:
        from hgrn2.ops.gated_outer_scan import triton

        return triton.backward(x, grad_o, grad_state, options)


class Native(NativeBackend):
    """C++."""

    def forward(self, x: OuterInputs, options: OuterOptions) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.native import outer

        o, final = outer.scan_forward(self._rows(x), _whole(x, options))
        return o.reshape(x.v.shape).to(x.v.dtype), final

    def backward(self, x: OuterInputs, grad_o: Tensor, grad_state: Tensor, options: OuterOptions) -> Gradients:
        from hgrn2.ops.native import outer

        do, ds = _flat(grad_o, x.work), grad_state.to(x.work).contiguous()
        return outer.scan_backward(self._rows(x), do, ds, _whole(x, options))

    def _rows(self, x: OuterInputs) -> OuterInputs:
        """[tokens, channels] of all sequences, always with offsets."""
        q, k, v, f = (_flat(y, x.work) for y in x[:4])
        state = None if x.state is None else x.state.to(x.work).contiguous()
        return OuterInputs(q, k, v, f, state, offsets_of(x.cu_seqlens, *x.q.shape[:2]))


def _whole(x: OuterInputs, options: OuterOptions) -> ScanOptions:
    return ScanOptions(x.q.shape[2], options.reverse, "none", "none", options.scale)


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).flatten(0, 1).flatten(1).contiguous()


class Chunked(Backend):
    """Plain PyTorch in products of chunks."""

    name, plain = "chunked", True

    def forward(self, x: OuterInputs, options: OuterOptions) -> tuple[Tensor, Tensor]:
        with full_precision(x.q.device):
            o, final = chunked.forward(*self._arguments(x, options), one_product=False)
        return o.reshape(x.v.shape).to(x.v.dtype), final

    def backward(self, x: OuterInputs, grad_o: Tensor, grad_state: Tensor, options: OuterOptions) -> Gradients:
        do, ds = grad_o.flatten(0, 1).to(x.work), grad_state.to(x.work).contiguous()
        with full_precision(x.q.device):
            dq, *others = chunked.backward(*self._arguments(x, options), do, ds, one_product=False)
        return options.scale * dq, *others

    def _arguments(self, x: OuterInputs, options: OuterOptions) -> tuple[ChunkPlan, OuterInputs]:
        plan = plan_chunks(offsets_of(x.cu_seqlens, *x.q.shape[:2]), chunked.CHUNK, options.reverse, x.q.device)
        start = x.v.new_zeros(x.states(), dtype=x.work) if x.state is None else x.state.to(x.work)
        q, k, v, f = (y.to(x.work).flatten(0, 1) for y in x[:4])
        return plan, OuterInputs(options.scale * q, k, v, f, start)

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
