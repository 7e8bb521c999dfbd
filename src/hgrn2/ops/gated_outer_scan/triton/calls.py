"""From tensors to kernel launches, for raw HGRN2 projections and for given (q, k, v, log f) alike.

forward   scan_chunks (chunk states) → output
backward  scan_chunks (chunk states again) and scan_chunks (gradients that arrive at them) → gradient → sum of dγ parts
"""

# pyright: reportCallIssue=false, reportArgumentType=false

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from hgrn2.ops.gated_outer_scan.triton.gates import NONE, SIGMOID, SILU
from hgrn2.ops.gated_outer_scan.triton.gradient import gradient
from hgrn2.ops.gated_outer_scan.triton.output import output_kernel
from hgrn2.ops.gated_outer_scan.triton.plan import CHUNK, Pieces, Plan, interpreted, plan_call, whole
from hgrn2.ops.gated_outer_scan.triton.states import join, scan_chunks
from hgrn2.ops.options import Inputs, ScanOptions

SCRATCH = 1 << 28
"""Bytes of chunk states at a time."""
ACTIVATIONS = {"none": NONE.value, "silu": SILU.value, "sigmoid": SIGMOID.value}


@dataclass(frozen=True)
class Scan:
    """The tensors and options of one call; token tensors are [B,T,H*n] with rows evenly spaced (see `rows`)."""

    plan: Plan
    q: Tensor
    f: Tensor
    """Logits of the forget gate (raw), or log f."""
    k: Tensor | None
    """None for raw projections, whose key is the gate's complement."""
    v: Tensor
    lower_bound: Tensor | None
    """γ [H*K] float32."""
    state: Tensor | None
    """[N,H,K,V], contiguous."""
    options: ScanOptions

    @property
    def raw(self) -> bool:
        return self.k is None

    @property
    def work(self) -> Any:
        """The type of product operands."""
        return triton.language.float32 if self.plan.dtype == torch.float32 else triton.language.bfloat16

    @property
    def quick(self) -> bool:
        """Whether lower bounds shorten the scores. They cost float32 up to 64 epsilons, so it keeps to halving.

        The interpreter knows no bfloat16 products: there float32 stands for it, so that tests see every kernel.
        """
        return self.lower_bound is not None and (self.plan.dtype != torch.float32 or interpreted())

    def common(self) -> dict[str, Any]:
        """Compile-time arguments of every kernel but `join`."""
        return {
            "K": self.plan.keys,
            "V": self.plan.values,
            "RAW": self.raw,
            "LOWER_BOUND": self.lower_bound is not None,
            "PACKED": self.plan.packed,
            "REVERSE": self.options.reverse,
            "WORK": self.work,
        }

    def activations(self) -> dict[str, Any]:
        """Compile-time arguments of the kernels that see both projections."""
        names = {"ACT_IN": self.options.input_activation, "ACT_OUT": self.options.output_activation}
        return {"QUICK": self.quick, **{key: ACTIVATIONS[name] for key, name in names.items()}}

    def part(self, sequences: slice) -> "Scan":
        """The call on some sequences of a dense batch."""
        if self.plan.packed or sequences == slice(None):
            return self
        count = len(range(*sequences.indices(self.plan.sequences)))
        if count == self.plan.sequences:
            return self
        chunks = Pieces(count * self.plan.chunks.each, self.plan.chunks.each)
        k, state = (None if x is None else x[sequences] for x in (self.k, self.state))
        q, f, v = (x[sequences] for x in (self.q, self.f, self.v))
        return replace(self, plan=replace(self.plan, sequences=count, chunks=chunks), q=q, f=f, k=k, v=v, state=state)

    def new_states(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory for `count` states of all heads."""
        return self.q.new_empty((count, self.plan.heads, self.plan.keys, self.plan.values), dtype=dtype)


def scan(x: Inputs, options: ScanOptions, key: Tensor | None = None) -> Scan:
    """A call as the kernels want it; copies only what lies badly in memory.

    key: where keys are given, which are then no complements of gates, `x.f` is log f and `x.i` the values.
    """
    offsets = None if x.cu_seqlens is None else x.cu_seqlens.to(x.q.device).contiguous()
    keys, values = x.states(options.heads)[2:]
    plan = plan_call(*x.q.shape[:2], options.heads, keys, values, offsets, x.i)
    lower_bound = None if x.lower_bound is None else x.lower_bound.float().contiguous()
    state = None if x.state is None else x.state.contiguous()
    key = None if key is None else rows(key)
    options = options._replace(scale=float(options.scale))
    return Scan(plan, rows(x.q), rows(x.f), key, rows(x.i), lower_bound, state, options)


def rows(x: Tensor) -> Tensor:
    """[B,T,n] whose tokens, of all sequences in a row, are evenly spaced and contiguous; a copy only where needed.

    A slice of a fused projection passes as it is.
    """
    even = x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)
    lies_well = x.stride(2) == 1 and even and x.stride(1) >= x.shape[2]
    return x if lies_well else x.contiguous()


def stride(x: Tensor) -> int:
    """From one token to the next; contiguous tensors may claim any stride along an axis of size 1."""
    return x.shape[2] if x.is_contiguous() else x.stride(1)


def forward(call: Scan) -> tuple[Tensor, Tensor]:
    """o [B,T,H*V] in v's dtype and the final states [N,H,K,V] float32."""
    o, final = call.v.new_empty(call.v.shape), call.new_states(call.plan.sequences)
    with on(o.device):
        for part in turns(call, 1):
            _forward(call.part(part), o[part], final if call.plan.packed else final[part])
    return o, final


def _forward(call: Scan, o: Tensor, final: Tensor) -> None:
    plan, chunks = call.plan, call.plan.chunks
    states = chunk_states(call, None, final)
    if not chunks.count:
        return
    settings, (keys, values) = plan.launch("output"), plan.tiles("output")
    k = call.f if call.k is None else call.k
    output_kernel[(chunks.count * plan.heads * -(-plan.values // values),)](
        call.q, call.f, k, call.v, call.lower_bound, states, o, plan.offsets, chunks.owner, chunks.first,
        plan.tokens, chunks.each, plan.sequences, plan.heads,
        stride(call.q), stride(call.f), stride(k), stride(call.v), call.options.scale,
        **call.common(), **call.activations(), KEYS=keys, VALUES=values,
        PRECISION=settings.precision, num_warps=settings.num_warps, num_stages=settings.num_stages,
    )  # fmt: skip


@dataclass(frozen=True)
class Gradients:
    """Gradients of a call: of q, f and v in their dtypes, of k if it was given, of γ and the state in float32."""

    q: Tensor
    f: Tensor
    k: Tensor | None
    v: Tensor
    lower_bound: Tensor | None
    state: Tensor

    def part(self, sequences: slice) -> "Gradients":
        """Those of some sequences of a dense batch; γ has none before the end."""
        k = None if self.k is None else self.k[sequences]
        return Gradients(self.q[sequences], self.f[sequences], k, self.v[sequences], None, self.state[sequences])


def backward(call: Scan, grad_o: Tensor, grad_state: Tensor) -> Gradients:
    """All gradients; chunk states are computed again, not kept."""
    grad_o, grad_state = rows(grad_o), grad_state.contiguous()
    dq, df, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (call.q, call.f, call.v))
    dk = None if call.k is None else torch.empty_like(call.k, memory_format=torch.contiguous_format)
    total = Gradients(dq, df, dk, dv, None, call.new_states(call.plan.sequences))
    d_lower_bound: Tensor | None = None
    with on(dq.device):
        for part in turns(call, 2):
            whole_call = call.plan.packed
            found = total if whole_call else total.part(part)
            arriving = grad_state if whole_call else grad_state[part]
            more = _backward(call.part(part), grad_o[part], arriving, found)
            d_lower_bound = more if d_lower_bound is None or more is None else d_lower_bound + more
    if d_lower_bound is None and call.lower_bound is not None:
        d_lower_bound = torch.zeros_like(call.lower_bound)
    return replace(total, lower_bound=d_lower_bound)


def _backward(call: Scan, grad_o: Tensor, grad_state: Tensor, found: Gradients) -> Tensor | None:
    """Fills `found`; returns the gradient of γ."""
    plan, chunks = call.plan, call.plan.chunks
    states = chunk_states(call, None, None)
    grads = chunk_states(call, (grad_o, grad_state), found.state)
    if call.lower_bound is None:
        parts = None
    else:  # of packed documents fewer chunks may be used than there is room for
        new = call.lower_bound.new_zeros if plan.packed else call.lower_bound.new_empty
        parts = new((chunks.count, plan.heads * plan.keys))
    if chunks.count:
        settings = plan.launch("gradient")
        keys, values = plan.tiles("gradient")[0], max(16, triton.next_power_of_2(plan.values))
        k = call.f if call.k is None else call.k
        gradient[(chunks.count * plan.heads,)](
            call.q, call.f, k, call.v, call.lower_bound, grad_o, states, grads, found.q, found.f, found.k, found.v,
            parts,
            plan.offsets, chunks.owner, chunks.first, plan.tokens, chunks.each, plan.sequences, plan.heads,
            stride(call.q), stride(call.f), stride(k), stride(call.v), stride(grad_o), call.options.scale,
            **call.common(), **call.activations(), KEYS=keys, VALUES=values,
            PRECISION=settings.precision, num_warps=settings.num_warps, num_stages=settings.num_stages,
        )  # fmt: skip
    return None if parts is None else parts.sum(0)


def turns(call: Scan, states: int) -> list[slice]:
    """Sequences that take a turn together, so that `states` scratch tensors of chunk states stay below SCRATCH."""
    plan = call.plan
    if plan.packed or not plan.chunks.each:
        return [slice(None)]
    element = 4 if plan.dtype == torch.float32 else 2
    each = states * element * plan.chunks.each * plan.heads * plan.keys * plan.values
    size = max(1, SCRATCH // each)
    return [slice(a, min(a + size, plan.sequences)) for a in range(0, plan.sequences, size)]


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The device of the tensors as the current one: kernels are launched there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def chunk_states(call: Scan, incoming: tuple[Tensor, Tensor] | None, final: Tensor | None) -> Tensor:
    """States at the start of every chunk [M,H,K,V]; fills `final` [N,H,K,V] float32, the state after the last one.

    With `incoming` (gradients of o and of the final state) the gradients that arrive after every chunk, and at the
    initial state.
    """
    plan = call.plan
    kept = torch.float32 if plan.dtype == torch.float32 else torch.bfloat16
    states = call.new_states(plan.chunks.count, kept)
    start = call.state if incoming is None else incoming[1]
    segments = plan.segments(plan.heads * _tiles(plan))
    if segments is None:
        _scan_chunks(call, incoming, whole(plan), -(-plan.tokens // CHUNK), start=start, states=states, final=final)
        return states
    span, pieces = segments
    local, starts = call.new_states(pieces.count), call.new_states(pieces.count)
    decays = local.new_empty((pieces.count, plan.heads, plan.keys))
    _scan_chunks(call, incoming, pieces, span, final=local, decays=decays)
    _join(call, incoming is not None, pieces, local, decays, start, starts, final)
    _scan_chunks(call, incoming, pieces, span, start=starts, states=states)
    return states


def _tiles(plan: Plan) -> int:
    keys, values = plan.tiles("states")
    return -(-plan.keys // keys) * -(-plan.values // values)


def _scan_chunks(
    call: Scan, incoming: tuple[Tensor, Tensor] | None, pieces: Pieces, span: int, *, start: Tensor | None = None,
    states: Tensor | None = None, final: Tensor | None = None, decays: Tensor | None = None,
) -> None:  # fmt: skip
    plan = call.plan
    if not pieces.count:
        return
    settings, (keys, values) = plan.launch("states"), plan.tiles("states")
    if incoming is None:
        left, right, activation = call.f if call.k is None else call.k, call.v, call.options.input_activation
    else:
        left, right, activation = call.q, incoming[0], call.options.output_activation
    scan_chunks[(pieces.count * plan.heads * _tiles(plan),)](
        call.f, left, right, call.lower_bound, start, states, final, decays, plan.offsets, pieces.owner, pieces.first,
        plan.chunks.first, plan.tokens, pieces.each, plan.chunks.each, span, plan.sequences, plan.heads,
        stride(call.f), stride(left), stride(right), call.options.scale,
        **call.common(), KEYS=keys, VALUES=values, GRAD=incoming is not None,
        ACT=ACTIVATIONS[activation],
        START=start is not None, STATES=states is not None, FINAL=final is not None, DECAYS=decays is not None,
        PRECISION=settings.precision, num_warps=settings.num_warps, num_stages=settings.num_stages,
    )  # fmt: skip


def _join(
    call: Scan, grad: bool, pieces: Pieces, local: Tensor, decays: Tensor, start: Tensor | None, starts: Tensor,
    final: Tensor | None,
) -> None:  # fmt: skip
    plan = call.plan
    settings, (keys, values) = plan.launch("join"), plan.tiles("join")
    tiles = -(-plan.keys // keys) * -(-plan.values // values)
    join[(plan.sequences * plan.heads * tiles,)](
        local, decays, start, starts, final, pieces.first, pieces.each, plan.sequences, plan.heads,
        K=plan.keys, V=plan.values, KEYS=keys, VALUES=values, GRAD=grad, START=start is not None,
        FINAL=final is not None, PACKED=plan.packed, num_warps=settings.num_warps,
    )  # fmt: skip
