"""The HGRN2 core for tiny heads: the state written as single numbers, and one scan over all of them.

The other backends keep the state [K,V] of a head inside and turn a chunk of tokens into matrix products. This one
writes the recurrence of all K V numbers of each head's state as `gated_scan` and reads it with q afterwards: it needs
no products, but holds V times as many numbers per token in memory. For heads of one channel nothing is expanded at all:
the scan is that of a vector recurrence.

`hgrn2 bench ops --ops hgru2 --shapes 4x1024x120x1 4x1024x120x4` times it beside the others; rows of both forms stand in
results/small_heads.jsonl. On a CPU, forward and backward together, it is about ten times quicker with heads of one
channel and about twice as quick with 2 and 3; with 4 they are level, and from there on products lead by more and more,
to about six times with 15. That holds for few long sequences and for many short ones, as rows of images make them. So
heads of 1, 2 and 3 channels come here, and from 4 on, where the times are level and the memory is not, they do not.

On a GPU no size does: heads of 16 channels and less have CUDA kernels of their own (ops/cuda/small.py). With 2 channels
on 4,096 sequences of 32 tokens and 128 channels they take 0.2 ms, forward and backward, where chunks padded to 16
channels take 18 (an H200, bfloat16). Where those kernels cannot serve (float16, AMD), Triton pads a head to 16.
"""

from torch import Tensor

from hgrn2.ops.activations import activate
from hgrn2.ops.backend import Backend, Call, full_precision
from hgrn2.ops.gated_scan import gated_scan
from hgrn2.ops.hgru2.reference import gates
from hgrn2.ops.options import Inputs, ScanOptions

UP_TO = {"cpu": 3, "cuda": 0}
"""The largest head for which this is quicker, by the kind of device; 1 on others."""


class Elementwise(Backend):
    """By name it serves heads of any size."""

    name, composed = "elementwise", True

    def auto(self, call: Call) -> bool:
        """Where it is quicker; not where the size of the heads is not known (0)."""
        return 0 < call.keys == call.values <= UP_TO.get(call.device.type, 1)

    def supports(self, call: Call) -> tuple[bool, str]:
        """Everything."""
        return True, f"states of K = {call.keys}, V = {call.values} as a scan of single numbers"

    def forward(self, x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
        """(o, final state)."""
        heads, (_, _, keys, values) = options.heads, x.states(options.heads)
        forget, key, value, query = written(x, options)
        if keys == values == 1:
            added = key * value
        else:
            key, forget, query = (y.unflatten(-1, (heads, keys)) for y in (key, forget, query))
            forget = forget.unsqueeze(-1).expand(*forget.shape, values).flatten(2)
            added = (key.unsqueeze(-1) * value.unflatten(-1, (heads, values)).unsqueeze(-2)).flatten(2)
        start = None if x.state is None else x.state.flatten(1)
        h, final = gated_scan(added, forget, state=start, cu_seqlens=x.cu_seqlens, reverse=options.reverse)
        assert final is not None
        if keys == values == 1:
            o = query * h
        else:
            with full_precision(h.device):
                o = (query.unsqueeze(-2) @ h.unflatten(-1, (heads, keys, values))).flatten(2)
        return o.to(x.i.dtype), final.unflatten(1, (heads, keys, values))


def written(x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raw projections -> forget gate, key 1 - f, value and scaled query [B,T,D], in float32 (float64 for float64)."""
    q, f, i = (y.to(x.work) for y in x[:3])
    forget, key = gates(f, x.lower_bound)  # in the form whose gradients do not cancel where a gate is near one
    return forget, key, activate(i, options.input_activation), options.scale * activate(q, options.output_activation)
