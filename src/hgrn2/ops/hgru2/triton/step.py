"""One token of the HGRN2 core in one kernel: gates, update of the state in place, output; float32 arithmetic."""

# Pyright takes the language's constants for objects of its own.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.gpu import architecture
from hgrn2.ops.gated_outer_scan.triton.calls import ACTIVATIONS, on
from hgrn2.ops.gated_outer_scan.triton.gates import activate, decaying
from hgrn2.ops.gated_outer_scan.triton.launch_table import launch
from hgrn2.ops.options import Inputs, ScanOptions


@triton.jit(do_not_specialize=["scale"])
def step_kernel(
    q, f, i, lower_bound_ptr, state, slots, o, heads, q_stride, f_stride, i_stride, state_stride, scale,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, LOWER_BOUND: tl.constexpr,
    SLOTS: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr,
):  # fmt: skip
    """One program: a sequence, a head and a tile of V; all of K, so the output is one sum."""
    v_tiles: tl.constexpr = (V + VALUES - 1) // VALUES
    v0 = (tl.program_id(0) % v_tiles) * VALUES
    head = (tl.program_id(0) // v_tiles) % heads
    row = (tl.program_id(0) // v_tiles // heads).to(tl.int64)
    k, v = tl.arange(0, KEYS), v0 + tl.arange(0, VALUES)
    x = tl.load(f + row * f_stride + head * K + k, mask=k < K, other=float("inf")).to(tl.float32)
    query = tl.load(q + row * q_stride + head * K + k, mask=k < K, other=0.0).to(tl.float32)
    value = tl.load(i + row * i_stride + head * V + v, mask=v < V, other=0.0).to(tl.float32)
    lower_bound = tl.zeros([KEYS], tl.float32)
    if LOWER_BOUND:
        lower_bound = tl.load(lower_bound_ptr + head * K + k, mask=k < K, other=0.0)
    small = decaying(x, True)
    up = 1.0 / (1.0 + small)
    key = (1.0 - lower_bound) * small * up
    forget = lower_bound + (1.0 - lower_bound) * up
    place = row
    if SLOTS:
        place = tl.load(slots + row).to(tl.int64)
    pointers = state + place * state_stride + head * (K * V) + k[:, None] * V + v[None, :]
    inside = (k < K)[:, None] & (v < V)[None, :]
    old = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    new = forget[:, None] * old + key[:, None] * activate(value, ACT_IN, True)[None, :]
    tl.store(pointers, new.to(state.dtype.element_ty), mask=inside)
    query = tl.where(k < K, scale * activate(query, ACT_OUT, True), 0.0)
    result = tl.sum(query[:, None] * new, 0)
    tl.store(o + (row * heads + head) * V + v, result.to(o.dtype.element_ty), mask=v < V)


def step(x: Inputs, slots: Tensor | None, options: ScanOptions) -> Tensor:
    """q, f [B,H*K], i [B,H*V] -> o [B,H*V] in i's dtype; updates the state, in place.

    x.state: [B,H,K,V], or a pool [S,H,K,V] of which `slots` [B] picks distinct rows; float32, or bfloat16 or float16
    states with float32 arithmetic, rounded once a token.
    """
    state, heads = x.state, options.heads
    assert state is not None
    if state.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"triton keeps the state of a step in float32, bfloat16 or float16, not {state.dtype}")
    # The pool of another engine may have more than this state in each of its rows.
    rows = state if state[:1].is_contiguous() and state.stride(0) else state.contiguous()
    keys, values = state.shape[2:]
    q, f, i = (y if y.stride(1) == 1 else y.contiguous() for y in x[:3])
    lower_bound = None if x.lower_bound is None else x.lower_bound.float().contiguous()
    o = torch.empty_like(i, memory_format=torch.contiguous_format)
    settings = launch("step", architecture(state.device), max(keys, values), str(state.dtype).removeprefix("torch."))
    names = ACTIVATIONS[options.input_activation], ACTIVATIONS[options.output_activation]
    tile = settings.tiles(16, values)[1]
    if q.shape[0]:
        with on(o.device):
            step_kernel[(q.shape[0] * heads * -(-values // tile),)](
                q, f, i, lower_bound, rows, slots, o, heads, q.stride(0), f.stride(0), i.stride(0), rows.stride(0),
                float(options.scale),
                K=keys, V=values, KEYS=max(16, triton.next_power_of_2(keys)), VALUES=tile,
                LOWER_BOUND=lower_bound is not None,
                SLOTS=slots is not None, ACT_IN=names[0], ACT_OUT=names[1], num_warps=settings.num_warps,
            )  # fmt: skip
    if rows is not state:
        state.copy_(rows)
    return o
