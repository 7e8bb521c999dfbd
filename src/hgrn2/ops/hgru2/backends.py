"""The backends of the HGRN2 core, in the order in which `auto` prefers them.

`forward` takes (Inputs, ScanOptions) and returns (o, final state). `backward` takes (Inputs, grad_o, grad_state,
ScanOptions) and returns gradients of q, f, i, lower_bound and state, None where there is none; a grad_state is zeros,
or None where `optional_grad_state`, if the final state was not used. `step` takes one token of each sequence, whose
state is a pool that it changes, and the rows of the pool that are theirs (None: all).
"""

from typing import Any

import torch
from torch import Tensor

from hgrn2.gpu import processors
from hgrn2.ops.backend import Backend, Batch, Call, Reference, constant_when_compiled, full_precision
from hgrn2.ops.cuda import support
from hgrn2.ops.gated_outer_scan.chunked import CHUNK
from hgrn2.ops.hgru2 import chunked, reference
from hgrn2.ops.hgru2.elementwise import Elementwise
from hgrn2.ops.native.support import NativeBackend
from hgrn2.ops.options import Inputs, ScanOptions
from hgrn2.ops.sequences import ChunkPlan, offsets_of, plan_chunks
from hgrn2.ops.triton_support import TritonBackend

Gradients = tuple[Tensor | None, ...]


@constant_when_compiled
def _processors(device: torch.device) -> int:
    return processors(device)


class _OnGpu(Backend):
    """Kernels on a GPU, which choose between one product and halving head by head."""

    def _kernels(self, keys: int) -> Any:
        """The module whose forward and backward run."""

    def forward(self, x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
        return self._kernels(x.states(options.heads)[2]).forward(x, options)

    def backward(self, x: Inputs, grad_o: Tensor, grad_state: Tensor | None, options: ScanOptions) -> Gradients:
        return self._kernels(x.states(options.heads)[2]).backward(x, grad_o, grad_state, options)

    def one_product(self, lower_bound: Tensor | None) -> bool:
        return lower_bound is not None and bool((lower_bound >= chunked.ONE_PRODUCT_LOWER_BOUND).any())


class Cuda(_OnGpu):
    """CUDA C++: heads of 64 and 128 in bfloat16, and small ones, which are scanned token by token."""

    name, compiles, better_than_plain, optional_grad_state = "cuda", True, True, True

    def auto(self, call: Call) -> bool:
        return call.device.type == "cuda"

    def supports(self, call: Call) -> tuple[bool, str]:
        return support.supports(call.device, call.dtype, call.keys, call.values)

    def slow(self, device: torch.device, keys: int, values: int, batch: Batch) -> str:
        sequences, tokens, heads, _ = batch
        few = 0 < keys <= support.SMALL and support.too_few(sequences, tokens, heads, keys, _processors(device))
        return "few long sequences of small heads are faster in chunks" if few else ""

    def _kernels(self, keys: int) -> Any:
        from hgrn2.ops.cuda import call, small

        return small if keys <= support.SMALL else call


class Triton(_OnGpu, TritonBackend):
    """The kernels of `gated_outer_scan`, which compute gates from projections when asked to."""

    products = True

    def _kernels(self, keys: int) -> Any:
        from hgrn2.ops.hgru2 import triton

        return triton

    def step(self, x: Inputs, slots: Tensor | None, options: ScanOptions) -> Tensor:
        return self._kernels(0).step(x, slots, options)


class _ByRows(Backend):
    """A step that takes its states out of the pool and puts them back."""

    def step(self, x: Inputs, slots: Tensor | None, options: ScanOptions) -> Tensor:
        pool = x.state
        if slots is None or pool is None:
            return self.one(x, options)
        rows = pool.index_select(0, slots)
        o = self.one(x._replace(state=rows), options)
        pool.index_copy_(0, slots, rows)
        return o

    def one(self, x: Inputs, options: ScanOptions) -> Tensor:
        """One token in the dtype of the state [B,H,K,V], which is changed."""
        return reference.step(x, options)


class Native(_ByRows, NativeBackend):
    """C++, gates inside."""

    def forward(self, x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
        from hgrn2.ops.native import outer

        o, final = outer.hgru2_forward(self._rows(x), options)
        return o.reshape(x.i.shape).to(x.i.dtype), final

    def backward(self, x: Inputs, grad_o: Tensor, grad_state: Tensor, options: ScanOptions) -> Gradients:
        from hgrn2.ops.native import outer

        do, ds = grad_o.to(x.work).flatten(0, 1).contiguous(), grad_state.to(x.work).contiguous()
        return outer.hgru2_backward(self._rows(x), do, ds, options)

    def one(self, x: Inputs, options: ScanOptions) -> Tensor:
        from hgrn2.ops.native import outer

        return outer.hgru2_step(x, options)

    def _rows(self, x: Inputs) -> Inputs:
        """[tokens, channels] of all sequences, always with offsets."""
        from hgrn2.ops.native.call import rows

        q, f, i = (rows(y.flatten(0, 1), x.work) for y in x[:3])
        lower_bound, state = (None if y is None else y.to(x.work).contiguous() for y in (x.lower_bound, x.state))
        return Inputs(q, f, i, lower_bound, state, _offsets(x))


class Chunked(_ByRows):
    """Plain PyTorch in products of chunks; its step is the reference's."""

    name, plain = "chunked", True

    def tangents(self, op: str) -> bool:
        return op == "hgru2_step"

    def forward(self, x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
        with full_precision(x.q.device):
            o, final = chunked.forward(*self._arguments(x, options), options)
        return o.reshape(x.i.shape).to(x.i.dtype), final

    def backward(self, x: Inputs, grad_o: Tensor, grad_state: Tensor, options: ScanOptions) -> Gradients:
        do = grad_o.to(x.work).flatten(0, 1).unflatten(-1, (options.heads, -1))
        with full_precision(x.q.device):
            return chunked.backward(*self._arguments(x, options), do, grad_state.to(x.work), options)

    def _arguments(self, x: Inputs, options: ScanOptions) -> tuple[ChunkPlan, Inputs]:
        heads, shape = options.heads, x.states(options.heads)
        plan = plan_chunks(_offsets(x), CHUNK, options.reverse, x.q.device)
        q, f, i = (y.to(x.work).flatten(0, 1).unflatten(-1, (heads, y.shape[2] // heads)) for y in x[:3])
        lower_bound = None if x.lower_bound is None else x.lower_bound.to(x.work).unflatten(0, (heads, -1))
        start = x.q.new_zeros(shape, dtype=x.work) if x.state is None else x.state.to(x.work)
        return plan, Inputs(q, f, i, lower_bound, start)

    def one_product(self, lower_bound: Tensor | None) -> bool:
        return chunked.one_product(lower_bound)


class Definition(_ByRows, Reference):
    """The loop over tokens."""

    def forward(self, x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
        return reference.hgru2(x, options)


def _offsets(x: Inputs) -> Tensor:
    return offsets_of(x.cu_seqlens, *x.q.shape[:2])


BACKENDS = (Cuda(), Triton(), Elementwise(), Native(), Chunked(), Definition())
