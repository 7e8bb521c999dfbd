"""hgru2 on the CUDA kernels: which kernels run, in which order, over which scratch memory.

Forward: one kernel from the projections to o. Backward: the states at the starts of chunks are computed again and kept
in bfloat16 (n² numbers for 64 tokens of a head), then one kernel scans back over them. Long sequences on few heads are
cut into segments; then the segments' local states, and for the backward the gradients that arrive at their ends, are
found first and joined.
"""

import torch
from torch import Tensor

from hgrn2.ops.cuda import plan as plans
from hgrn2.ops.cuda.launch import Problem, launch
from hgrn2.ops.cuda.plan import Plan
from hgrn2.ops.options import Inputs, ScanOptions

WIDTH = 128
"""Channels of a block of threads: one head of 128 or two of 64."""
THREADS, JOIN_THREADS = 512, 256
_ACTIVATIONS = {"none": 0, "silu": 1, "sigmoid": 2}
_SCAN, _LOCAL, _ARRIVING = 0, 1, 2  # states.cu
SHARED = {
    (128, "forward"): 219392, (64, "forward"): 227584, (128, "states"): 201728, (64, "states"): 201728,
    (128, "backward"): 232192, (64, "backward"): 224000,
}  # fmt: skip
"""Bytes of shared memory: the END of each kernel's layout."""


def forward(x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """(o [B,T,H*n] bfloat16, final state [N,H,n,n] float32); arguments as in `hgrn2.ops.hgru2`."""
    call = _Call(x, options)
    o = call.q.new_empty(call.q.shape)
    final = call.q.new_empty(call.states, dtype=torch.float32)
    call.give(o=o, final_state=final)
    if call.plan.segmented:
        call.join_segments(_LOCAL)
    call.run("forward")
    return call.real_channels(o).to(x.i.dtype), final[:, : options.heads].contiguous()


def backward(
    x: Inputs, grad_o: Tensor, grad_state: Tensor | None, options: ScanOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, f, i, and in float32 of lower_bound and the initial state (None where there is none)."""
    call = _Call(x, options)
    grad_o = call.rows(grad_o, "grad_o", "o_row")
    arriving = None if grad_state is None else call.padded_state(grad_state)
    q = call.q
    dq, df, di = (q.new_empty(q.shape) for _ in range(3))
    d_state = None if x.state is None else q.new_empty(call.states, dtype=torch.float32)
    d_lower_bound = q.new_zeros((call.plan.count, q.shape[2]), dtype=torch.float32)
    chunks = q.new_empty((call.plan.chunks, call.heads, call.size * call.size), dtype=torch.bfloat16)
    call.give(grad_state=arriving, dq=dq, df=df, di=di, d_state=d_state, d_lower_bound=d_lower_bound, chunks=chunks)
    if call.plan.segmented:
        call.join_segments(_LOCAL)
    call.run("states", _SCAN)
    if call.plan.segmented:
        call.join_segments(_ARRIVING)
    call.run("backward")
    total = None if x.lower_bound is None else call.real_channels(d_lower_bound.sum(0))
    dq, df, di = (call.real_channels(g).to(y.dtype) for g, y in zip((dq, df, di), x[:3], strict=True))
    return dq, df, di, total, None if d_state is None else d_state[:, : options.heads].contiguous()


class _Call:
    """One call's problem, and the tensors that must live as long as its kernels may run."""

    def __init__(self, given: Inputs, options: ScanOptions) -> None:
        q, f, i, lower_bound, state, cu_seqlens = given
        heads, reverse = options.heads, options.reverse
        self.size = q.shape[2] // heads
        self.heads = -(-heads * self.size // WIDTH) * WIDTH // self.size  # an odd number of heads of 64: one more
        self.missing = (self.heads - heads) * self.size
        self.problem, self.kept = Problem(), []
        self.q = self.rows(q, "q", "q_row")
        self.rows(f, "f", "f_row")
        self.rows(i, "i", "i_row")
        blocks = self.q.shape[2] // WIDTH
        self.plan: Plan = plans.make(q.shape[0], q.shape[1], cu_seqlens, blocks, reverse, q.device)
        sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
        self.states = (sequences, self.heads, self.size, self.size)
        start = None if state is None else self.padded_state(state)
        lower_bound = None if lower_bound is None else self._padded(lower_bound.float()).contiguous()
        self.give(lower_bound=lower_bound, state=start, items=self.plan.items)
        p = self.problem
        p.count, p.heads, p.reverse, p.scale = self.plan.count, self.heads, int(reverse), options.scale
        p.input_activation = _ACTIVATIONS[options.input_activation]
        p.output_activation = _ACTIVATIONS[options.output_activation]

    def _padded(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, self.missing)) if self.missing else x

    def padded_state(self, x: Tensor) -> Tensor:
        """A state in float32 with the missing head's zeros."""
        extra = (0, 0, 0, 0, 0, self.heads - x.shape[1])
        return (torch.nn.functional.pad(x, extra) if self.missing else x).float().contiguous()

    def real_channels(self, x: Tensor) -> Tensor:
        """Without the channels of a head that was added."""
        return x[..., : x.shape[-1] - self.missing].contiguous() if self.missing else x

    def rows(self, x: Tensor, name: str, row: str) -> Tensor:
        """Give a [B,T,D] tensor as rows of bfloat16 at one distance: a view of a wider product is taken as it is."""
        x = self._padded(x.to(torch.bfloat16))
        regular = x.stride(2) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1))
        if not regular or x.stride(1) % 8 or x.data_ptr() % 16:
            x = x.contiguous()
        self.give(**{name: x})
        setattr(self.problem, row, x.stride(1))
        return x

    def give(self, **tensors: Tensor | None) -> None:
        """Set pointers of the problem, and keep their tensors."""
        for name, x in tensors.items():
            setattr(self.problem, name, None if x is None else x.data_ptr())
            self.kept.append(x)

    def run(self, kernel: str, mode: int = 0) -> None:
        """Start one of the scans on the current stream."""
        self.problem.mode = mode
        grid = (self.plan.count, self.q.shape[2] // WIDTH)
        launch(kernel, self.size, self.problem, grid, THREADS, SHARED[self.size, kernel], self.q.device)

    def join_segments(self, mode: int) -> None:
        """States at the starts of segments (LOCAL), or gradients that arrive at their ends (ARRIVING)."""
        count, width = self.plan.count, self.q.shape[2]
        shape = (count, *self.states[1:])
        name = "segments" if mode == _LOCAL else "arriving"
        self.give(**{name: self.q.new_empty(shape, dtype=torch.float32)})
        self.give(decays=self.q.new_empty((count, width), dtype=torch.float32))
        self.run("states", mode)
        self.problem.mode = mode
        grid = (count, self.heads * self.size * self.size // JOIN_THREADS)
        launch("join", self.size, self.problem, grid, JOIN_THREADS, 0, self.q.device)
