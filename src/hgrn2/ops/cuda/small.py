"""hgru2 for small heads on CUDA kernels: the recurrence token by token, one lane per channel (small.h).

A matrix of 16 channels or less is too small for matrix units: padded to 16 and cut into chunks it costs more than it is
worth, most of all on many short sequences, such as the rows of images. The sequential scan is exact whatever the gates,
in float32, and for bfloat16 and float32 alike. What it lacks is parallelism along a sequence: few long ones are slow.
"""

import ctypes

import torch
from torch import Tensor

from hgrn2.ops.cuda.launch import launch
from hgrn2.ops.cuda.plan import fitting
from hgrn2.ops.cuda.support import warps
from hgrn2.ops.options import Inputs, ScanOptions
from hgrn2.ops.sequences import offsets_of

BLOCK = 32
WIDE = 100
"""Added to the head size that float32 kernels are compiled for."""
_ACTIVATIONS = {"none": 0, "silu": 1, "sigmoid": 2}
_POINTER, _ROW, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class SmallProblem(ctypes.Structure):
    """What small.h declares under the same names; every pointer is to device memory, 0 where there is none."""

    _fields_ = (
        [(name, _POINTER) for name in ("q", "f", "i", "grad_o")]
        + [(name, _ROW) for name in ("q_row", "f_row", "i_row", "o_row")]
        + [(name, _POINTER) for name in ("lower_bound", "state", "grad_state", "o", "dq", "df", "di")]
        + [(name, _POINTER) for name in ("final_state", "d_state", "d_lower_bound", "kept", "offsets")]
        + [(name, _INT) for name in ("sequences", "tokens", "heads", "reverse")]
        + [(name, _INT) for name in ("input_activation", "output_activation")]
        + [("scale", ctypes.c_float)]
    )


def run(size: int) -> int:
    """Tokens between two states that the backward keeps: RUN of small.h."""
    return 8 if size <= 8 else 4


def forward(x: Inputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """(o [B,T,H*n] in i's dtype, final state [N,H,n,n] float32); arguments as in `hgrn2.ops.hgru2`."""
    call = _Call(x, options)
    o = call.like(x.q)
    final = x.q.new_empty(call.states, dtype=torch.float32)
    call.give(o=o, final_state=final)
    call.launch("small_forward")
    return o.to(x.i.dtype), final


def backward(
    x: Inputs, grad_o: Tensor, grad_state: Tensor | None, options: ScanOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, f, i, and in float32 of lower_bound and the initial state (None where there is none)."""
    call = _Call(x, options)
    call.rows(grad_o, "grad_o", "o_row")
    dq, df, di = (call.like(y) for y in x[:3])
    q, heads = x.q, options.heads
    d_state = None if x.state is None else q.new_empty(call.states, dtype=torch.float32)
    # zeros: an empty document leaves its row alone
    d_lower_bound = q.new_zeros((call.states[0], q.shape[2]), dtype=torch.float32)
    lanes = -(-heads // (32 // call.size)) * 32 * call.size
    kept = q.new_empty((q.shape[0] * q.shape[1] // run(call.size) + call.states[0]) * lanes, dtype=torch.float32)
    arriving = None if grad_state is None else grad_state.float().contiguous()
    call.give(grad_state=arriving, dq=dq, df=df, di=di, d_state=d_state, d_lower_bound=d_lower_bound, kept=kept)
    call.launch("small_backward")
    total = None if x.lower_bound is None else d_lower_bound.sum(0)
    return dq.to(q.dtype), df.to(x.f.dtype), di.to(x.i.dtype), total, d_state


def _offsets(cu_seqlens: Tensor, tokens: int, device: torch.device) -> Tensor:
    """Refused where they do not fit and lie on the CPU; moved to such that fit elsewhere."""
    if cu_seqlens.device.type == "cpu":
        return offsets_of(cu_seqlens, 1, tokens).to(device, torch.int64).contiguous()
    return fitting(cu_seqlens, tokens)


class _Call:
    """One call's problem, and the tensors that must live as long as its kernel may run."""

    def __init__(self, given: Inputs, options: ScanOptions) -> None:
        q, f, i, lower_bound, state, cu_seqlens = given
        self.states = given.states(options.heads)
        self.size, self.device = self.states[2], q.device
        narrow = all(x.dtype == torch.bfloat16 for x in (q, f, i))
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self.problem, self.kept = SmallProblem(), []
        for x, name in ((q, "q"), (f, "f"), (i, "i")):
            self.rows(x, name, f"{name}_row")
        self.give(
            lower_bound=None if lower_bound is None else lower_bound.float().contiguous(),
            state=None if state is None else state.float().contiguous(),
            offsets=None if cu_seqlens is None else _offsets(cu_seqlens, q.shape[1], q.device),
        )
        p = self.problem
        p.sequences, p.tokens, p.heads = self.states[0], q.shape[1], options.heads
        p.reverse, p.scale = int(options.reverse), options.scale
        p.input_activation = _ACTIVATIONS[options.input_activation]
        p.output_activation = _ACTIVATIONS[options.output_activation]

    def like(self, x: Tensor) -> Tensor:
        """An empty tensor of x's shape in the dtype that the kernels write."""
        return torch.empty(x.shape, dtype=self.dtype, device=x.device)

    def rows(self, x: Tensor, name: str, row: str) -> None:
        """Give a [B,T,D] tensor as rows at one distance: a view of a wider product is taken as it is."""
        x = x.to(self.dtype)
        if x.stride(2) != 1 or (x.shape[0] > 1 and x.stride(0) != x.shape[1] * x.stride(1)):
            x = x.contiguous()
        self.give(**{name: x})
        setattr(self.problem, row, x.stride(1))

    def give(self, **tensors: Tensor | None) -> None:
        """Set pointers of the problem, and keep their tensors."""
        for name, x in tensors.items():
            setattr(self.problem, name, None if x is None else x.data_ptr())
            self.kept.append(x)

    def launch(self, kernel: str) -> None:
        """Start a kernel on the current stream."""
        sequences, heads = self.states[:2]
        head = self.size + (0 if self.dtype == torch.bfloat16 else WIDE)
        launch(kernel, head, self.problem, (warps(sequences, heads, self.size), 1), BLOCK, 0, self.device)
