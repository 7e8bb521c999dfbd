"""What contracts are checked on: the operators in one uniform description, and named problems for each.

A case is a few plain values; `build` draws its tensors from a generator seeded by those values, rounds them to the
dtype under test and widens nothing: every backend, the float64 reference included, starts from the very same numbers.
"""

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.ops.backend import work_dtype


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator of `hgrn2.ops` as the contracts see it; every tensor is passed by name."""

    name: str
    run: Callable[..., tuple[Tensor, Tensor | None]]
    """The public function: tensors and options by keyword -> (output, final state)."""
    step: Callable[..., tuple[Tensor, Tensor]]
    """One token: the same tensors without the token axis, and a state."""
    per_token: tuple[str, ...]
    """Names of the tensors with a token axis, which is axis 1."""
    shared: tuple[str, ...] = ()
    """Names of the tensors that all tokens and sequences share."""
    reversible: bool = True


def _any_backend(step: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A step that has one implementation, called like one that has several."""
    return lambda *, backend, **arguments: step(**arguments)


_KNOWN = (
    Operator(name="hgru2", run=ops.hgru2, step=ops.hgru2_step, per_token=("q", "f", "i"), shared=("lower_bound",)),
    Operator(
        name="gated_outer_scan",
        run=ops.gated_outer_scan,
        step=_any_backend(ops.gated_outer_step),
        per_token=("q", "k", "v", "log_f"),
    ),
    Operator(name="gated_scan", run=ops.gated_scan, step=_any_backend(ops.gated_step), per_token=("x", "f")),
    Operator(
        name="causal_conv",
        run=ops.causal_conv,
        step=_any_backend(ops.causal_conv_step),
        per_token=("x",),
        shared=("weight",),
        reversible=False,
    ),
)
OPERATORS = {operator.name: operator for operator in _KNOWN}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem. Element-wise operators have `heads * key` channels and read neither `value` nor `lower_bound`."""

    op: str
    batch: int = 2
    tokens: int = 65
    heads: int = 2
    key: int = 16
    value: int = 16
    gates: str = "normal"
    """A name in `LOGITS`: how the logits of the forget gates are drawn."""
    lower_bound: str = "none"
    """A name in `LOWER_BOUNDS`: the lower bound of hgru2."""
    state: bool = True
    """Whether there is an initial state."""
    lengths: tuple[int, ...] = ()
    """Packed documents; then the batch is 1 and `tokens` their sum."""
    complex: bool = False
    taps: int = 4
    """Width of the convolution."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further keyword arguments of the operator."""
    device: str = "cpu"
    """Where the tensors lie; the numbers are the same everywhere."""

    def __str__(self) -> str:
        parts = [f"{self.op}-B{self.batch}-T{self.tokens}-H{self.heads}-K{self.key}-V{self.value}", self.gates]
        parts += [f"lower_bound_{self.lower_bound}"] if self.lower_bound != "none" else []
        parts += ["complex"] if self.complex else []
        parts += [f"taps{self.taps}"] if self.op == "causal_conv" else []
        parts += ["stateless"] if not self.state else []
        parts += ["docs_" + "_".join(map(str, self.lengths))] if self.lengths else []
        parts += [f"{name}={option}" for name, option in self.options]
        parts += [self.device] if self.device != "cpu" else []
        return "-".join(parts)


def packed(case: Case, lengths: tuple[int, ...]) -> Case:
    """The case with its tokens packed into documents of these lengths."""
    return replace(case, batch=1, tokens=sum(lengths), lengths=lengths)


@dataclass(frozen=True)
class Problem:
    """The tensors and options of a case in one dtype, and the gradients that arrive at its outputs."""

    operator: Operator
    tensors: dict[str, Tensor | None]
    options: dict[str, Any]
    grad_output: Tensor
    grad_state: Tensor
    cu_seqlens: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same numbers in another real dtype (or its complex twin); states and lower bounds in its working
        dtype."""
        kept = ("state", "lower_bound")
        changed = {name: _cast(x, work_dtype(dtype) if name in kept else dtype) for name, x in self.tensors.items()}
        grad_output, grad_state = _cast(self.grad_output, dtype), _cast(self.grad_state, work_dtype(dtype))
        return replace(self, tensors=changed, grad_output=grad_output, grad_state=grad_state)

    def on(self, device: torch.device | str) -> "Problem":
        """The same numbers on another device."""
        return replace(
            self,
            tensors={name: None if x is None else x.to(device) for name, x in self.tensors.items()},
            grad_output=self.grad_output.to(device),
            grad_state=self.grad_state.to(device),
            cu_seqlens=None if self.cu_seqlens is None else self.cu_seqlens.to(device),
        )


def _cast(x: Any, dtype: torch.dtype) -> Any:
    if x is None:
        return None
    return x.to(dtype.to_complex() if x.is_complex() else dtype)


# Logits of the forget gate, from standard normal numbers n of any shape.
LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda n: n,
    "wide": lambda n: 3 * n,
    "low": lambda n: n - 12,
    "high": lambda n: n + 12,
    "floor": lambda n: torch.full_like(n, -40.0),
    "ceiling": lambda n: torch.full_like(n, 40.0),
    "extremes": lambda n: 40 * n.sign(),
    "steep": lambda n: torch.where(n > 1, -40.0, n),
    "infinite": lambda n: torch.where(n > 1, torch.inf, torch.where(n < -1, -torch.inf, n)),
    "skips": lambda n: torch.where(n.mean((0, *range(2, n.dim())), keepdim=True) > 0, torch.inf, n),
}

# The lower bound, from numbers u uniform in [0,1).
LOWER_BOUNDS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda u: None,
    "zero": torch.zeros_like,
    "small": lambda u: 1e-3 * u,
    "high": lambda u: 0.3 + 0.69 * u,
    "edge": lambda u: torch.full_like(u, 0.3),
    "mixed": lambda u: u * (u > 0.3),
}


def build(case: Case, dtype: torch.dtype) -> Problem:
    """Tensors of a case; token tensors and the output's gradient in `dtype`, the rest in its working dtype."""
    values = {name: value for name, value in asdict(case).items() if name != "device"}
    generator = torch.Generator().manual_seed(zlib.crc32(repr(sorted(values.items())).encode()))

    def normal(*shape: int) -> Tensor:
        kind = torch.complex128 if case.complex else torch.float64
        return torch.randn(shape, generator=generator, dtype=kind)

    def logits(*shape: int) -> Tensor:
        return LOGITS[case.gates](torch.randn(shape, generator=generator, dtype=torch.float64))

    makers = {"hgru2": _hgru2, "gated_outer_scan": _outer, "gated_scan": _scan, "causal_conv": _conv}
    sequences = len(case.lengths) if case.lengths else case.batch
    tensors, output_shape, state_shape = makers[case.op](case, normal, logits, generator)
    state = normal(sequences, *state_shape)
    cu_seqlens = torch.tensor((0, *case.lengths)).cumsum(0) if case.lengths else None
    problem = Problem(
        operator=OPERATORS[case.op],
        tensors={**tensors, "state": state if case.state else None},
        options=dict(case.options) | ({"heads": case.heads} if case.op == "hgru2" else {}),
        grad_output=normal(*output_shape),
        grad_state=normal(sequences, *state_shape),
        cu_seqlens=cu_seqlens,
    )
    return problem.to(dtype).on(case.device)


Made = tuple[dict[str, Tensor | None], tuple[int, ...], tuple[int, ...]]
Draw = Callable[..., Tensor]


def _hgru2(case: Case, normal: Draw, logits: Draw, generator: torch.Generator) -> Made:
    keys, values = case.heads * case.key, case.heads * case.value
    head = (case.batch, case.tokens)
    lower_bound = LOWER_BOUNDS[case.lower_bound](torch.rand(keys, generator=generator, dtype=torch.float64))
    tensors = {
        "q": normal(*head, keys),
        "f": logits(*head, keys),
        "i": normal(*head, values),
        "lower_bound": lower_bound,
    }
    return tensors, (*head, values), (case.heads, case.key, case.value)


def _outer(case: Case, normal: Draw, logits: Draw, generator: torch.Generator) -> Made:
    head = (case.batch, case.tokens, case.heads)
    log_f = torch.nn.functional.logsigmoid(logits(*head, case.key))
    tensors = {"q": normal(*head, case.key), "k": normal(*head, case.key), "v": normal(*head, case.value)}
    return {**tensors, "log_f": log_f}, (*head, case.value), (case.heads, case.key, case.value)


def _scan(case: Case, normal: Draw, logits: Draw, generator: torch.Generator) -> Made:
    shape = (case.batch, case.tokens, case.heads * case.key)
    f = logits(*shape).sigmoid()
    if case.complex:
        f = torch.polar(f, 6.3 * torch.rand(shape, generator=generator, dtype=torch.float64))
    return {"x": normal(*shape), "f": f}, shape, shape[2:]


def _conv(case: Case, normal: Draw, logits: Draw, generator: torch.Generator) -> Made:
    shape = (case.batch, case.tokens, case.heads * case.key)
    return {"x": normal(*shape), "weight": normal(shape[2], case.taps)}, shape, (case.taps - 1, shape[2])
