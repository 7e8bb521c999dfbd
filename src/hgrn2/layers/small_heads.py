"""The mixing core of HGRN2 for every head size, and which form each takes.

Two forms give the same numbers. The *outer* form (`ops.hgru2`) keeps the state [n,n] of a head inside the operator and
turns a chunk of tokens into matrix products. The *element-wise* form writes the recurrence of all D n numbers of the
state as `ops.gated_scan` over D n channels and reads it with o afterwards: it needs no products, but D n numbers a
token in memory, n times what the outer form touches. For n = 1 nothing is expanded at all: the state of a channel is
one number, and the scan is that of a vector recurrence.

`python -m hgrn2.bench.small_heads` times both, on this machine and on any backend; its rows stand in
results/small_heads.jsonl. On a CPU, forward and backward together, the element-wise form is about ten times quicker
at n = 1 and about twice as quick at n = 2 and 3; at n = 4 the two are level, and from there on the outer form leads by
more and more, to about six times at n = 15. That holds for few long sequences and for many short ones, as rows of
pictures make them. So n of 1, 2 and 3 take the element-wise form, and from 4 on, where the times are level and the
memory is not, the outer form.

On a GPU all sizes take the outer form: heads of 16 channels and less have CUDA kernels of their own, which walk over
the tokens with the state in registers (ops/cuda/small.py). At n = 2 on 4,096 lines of 32 tokens and 128 channels they
take 0.2 ms, forward and backward, where chunks padded to 16 channels take 18 (an H200, bfloat16). Where those kernels
cannot serve (float16, AMD), Triton pads a head to 16 channels, masked: gate logits of +inf, queries and values of 0.
"""

from typing import Any

from torch import Tensor

from hgrn2 import ops
from hgrn2.ops.activations import activate
from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.hgru2.reference import gates

ELEMENTWISE_UP_TO = {"cpu": 3, "cuda": 0}
"""The largest head size that takes the element-wise form, by the kind of device."""


def mix(
    q: Tensor,
    f: Tensor,
    i: Tensor,
    lower_bound: Tensor | None = None,
    *,
    heads: int,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    input_activation: str = "none",
    output_activation: str = "silu",
    scale: float = 1.0,
    output_final_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`ops.hgru2` with the same arguments and results, in the form that is fast for this head size."""
    options: dict[str, Any] = {
        "state": state, "cu_seqlens": cu_seqlens, "reverse": reverse, "output_final_state": output_final_state,
    }  # fmt: skip
    names = {"input_activation": input_activation, "output_activation": output_activation}
    if q.shape[-1] // heads > ELEMENTWISE_UP_TO.get(q.device.type, 1):
        return ops.hgru2(q, f, i, lower_bound, heads=heads, scale=scale, **names, **options)
    return elementwise(q, f, i, lower_bound, heads=heads, scale=scale, **names, **options)


def elementwise(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, *, heads: int, state: Tensor | None,
    cu_seqlens: Tensor | None, reverse: bool, input_activation: str, output_activation: str, scale: float,
    output_final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The element-wise form for heads of any size; keys and values have the same width n."""
    n, dtype = q.shape[-1] // heads, i.dtype
    forget, key, value, query = written(q, f, i, lower_bound, input_activation, output_activation, scale)
    if n > 1:
        key, value, forget, query = (x.unflatten(-1, (heads, n)) for x in (key, value, forget, query))
        forget = forget.unsqueeze(-1).expand(*forget.shape, n).flatten(2)
        added = (key.unsqueeze(-1) * value.unsqueeze(-2)).flatten(2)
    else:
        added = key * value
    h, final = ops.gated_scan(
        added, forget, state=None if state is None else state.flatten(1), cu_seqlens=cu_seqlens, reverse=reverse,
        output_final_state=output_final_state,
    )  # fmt: skip
    if n > 1:
        with full_precision(h.device):
            h = (query.unsqueeze(-2) @ h.unflatten(-1, (heads, n, n))).flatten(2)
    else:
        h = query * h
    return h.to(dtype), None if final is None else final.unflatten(1, (heads, n, n))


def written(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, input_activation: str, output_activation: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Raw projections -> forget gate, key 1 - f, value and scaled query [B,T,D], in float32 (float64 for float64)."""
    work = work_dtype(i.dtype)
    q, f, i = (x.to(work) for x in (q, f, i))
    forget, key = gates(f, lower_bound)  # in the form whose gradients do not cancel where a gate is near one
    return forget, key, activate(i, input_activation), scale * activate(q, output_activation)


def current(
    q: Tensor, f: Tensor, i: Tensor, lower_bound: Tensor | None, *, heads: int, input_activation: str,
    output_activation: str, scale: float,
) -> Tensor:  # fmt: skip
    """What each token reads of its own write, o_t (k_t ⊗ i_t) [B,T,D]: the diagonal of the scan, in float32."""
    _, key, value, query = written(q, f, i, lower_bound, input_activation, output_activation, scale)
    weight = (query * key).unflatten(-1, (heads, -1)).sum(-1, keepdim=True)
    return (weight * value.unflatten(-1, (heads, -1))).flatten(-2)
