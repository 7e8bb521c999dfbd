"""Speed of the operators on each backend of this machine, after every one of them has proved itself right."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hgrn2 import cpu
from hgrn2.bench.record import Row, measurement
from hgrn2.bench.subjects import check_distinct, use_threads
from hgrn2.bench.timing import Progress, Sample, interleave, repeated, silent
from hgrn2.errors import UserError
from hgrn2.ops import backend as backends
from hgrn2.settings import refuse
from hgrn2.testing.cases import Case, Problem, build
from hgrn2.testing.compare import failures
from hgrn2.testing.contracts import leaves, matches_reference

OPS = ("hgru2", "gated_outer_scan", "gated_scan", "causal_conv")
PASSES = ("forward", "forward+backward")
GATE_BATCH, GATE_TOKENS = 2, 129  # two chunks and a token


@dataclass(frozen=True, kw_only=True)
class OpsBench:
    """What to measure."""

    ops: tuple[str, ...] = OPS
    backends: tuple[str, ...] = ()
    """Which of `hgrn2.ops.backend.NAMES`; none named: all that this machine can serve."""
    shapes: tuple[str, ...] = ("8x512x256x64", "2x2048x256x64", "4x1024x512x128")
    """BxTxDxn: sequences, tokens, channels, head size. Element-wise operators have no heads and ignore n."""
    sdpa: bool = True
    """Also PyTorch's causal attention at the same shapes."""
    repeats: int = 9
    max_seconds: float = 10.0
    """Of wall time for a backend at a shape and pass, after which it is not repeated again."""
    threads: int | None = None

    def __post_init__(self) -> None:
        check_distinct("--ops", self.ops)
        check_distinct("--shapes", self.shapes)
        for op in self.ops:
            refuse(op not in OPS, f"--ops has {op!r}; choose from {', '.join(OPS)}")
        for shape in self.shapes:
            parse_shape(shape)
        refuse(self.repeats < 1, f"--repeats is {self.repeats}; it must be at least 1")
        refuse(not 0 < self.max_seconds < math.inf, f"--max-seconds is {self.max_seconds}; it must be positive")


class WrongResult(Exception):
    """A backend misses the reference: its speed would mean nothing. The message has a line for each failure."""


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """(B, T, D, n) from BxTxDxn."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--shapes has {text!r}; write BxTxDxn, as in 8x512x256x64")
    batch, tokens, width, head = (int(part) for part in match.groups())
    refuse(min(batch, tokens, width, head) < 1, f"--shapes has {text!r}; every number must be at least 1")
    refuse(width % head != 0, f"--shapes has {text!r}: {width} channels do not divide into heads of {head}")
    return batch, tokens, width, head


def case_of(op: str, shape: str) -> Case:
    """The problem that is timed: gates from normal logits, for hgru2 with small positive bounds, no initial state."""
    batch, tokens, width, head = parse_shape(shape)
    bound = "small" if op == "hgru2" else "none"
    return Case(op=op, batch=batch, tokens=tokens, heads=width // head, key=head, value=head, bound=bound, state=False)


def available(names: tuple[str, ...]) -> tuple[str, ...]:
    """The backends to measure; one asked for by name that cannot serve is a `UserError`."""
    place = torch.device("cpu")
    if names:
        return tuple(backends.choose(place, name).backend for name in names)
    usable = []
    for name in backends.NAMES:
        try:
            usable.append(backends.choose(place, name).backend)
        except UserError:
            continue
    return tuple(usable)


def verify(bench: OpsBench, progress: Progress = silent) -> None:
    """Hold every backend to the float64 reference, on each shape with fewer sequences and tokens.

    Output, final state and all gradients must lie within the contracts' measured tolerance (`hgrn2.testing`).

    Raises:
        WrongResult: where one does not.
    """
    chosen = available(bench.backends)
    broken = []
    checks = [(op, name, shape) for op in bench.ops for shape in bench.shapes for name in chosen]
    for number, (op, name, shape) in enumerate(checks):
        progress("checking", number, len(checks))
        case = case_of(op, shape)
        small = replace(case, batch=min(case.batch, GATE_BATCH), tokens=min(case.tokens, GATE_TOKENS))
        text = failures(matches_reference(small, name, torch.float32))
        broken += [f"{op} on {name}, {small}: {line}" for line in text.splitlines()]
    progress("checking", len(checks), len(checks))
    if broken:
        raise WrongResult("\n".join(broken))


def measure(bench: OpsBench, record: Callable[[Row], None], progress: Progress = silent) -> None:
    """Check every backend first, then time them in turn; no row is recorded unless all of them are right."""
    use_threads(bench.threads)
    verify(bench, progress)
    conditions = {"freed_memory_kept": cpu.keep_freed_memory(), "interleaved": True}
    chosen = available(bench.backends)
    for shape in bench.shapes:
        for direction in PASSES:
            batch, tokens, width, head = parse_shape(shape)
            samples: dict[tuple[str, str], Sample] = {}
            for op in bench.ops:
                problem = build(case_of(op, shape), torch.float32)
                samples |= {(op, name): repeated(_call(problem, name, direction)) for name in chosen}
            if bench.sdpa:
                samples["sdpa", "torch"] = repeated(_sdpa(shape, direction))
            limits = {"repeats": bench.repeats, "max_seconds": bench.max_seconds}
            taken = interleave(samples, **limits, stage=f"{shape} {direction}", progress=progress)
            for (op, name), times in taken.items():
                case = {"op": "causal attention" if op == "sdpa" else op, "pass": direction, "dtype": "float32"}
                case |= {"batch": batch, "tokens": tokens, "width": width, "head_size": head}
                milliseconds = [1e3 * seconds for seconds in times]
                subject = "sdpa" if op == "sdpa" else "hgrn2"
                record(measurement("ops", case, subject, name, milliseconds, "ms", conditions))


def _call(problem: Problem, backend: str, direction: str) -> Callable[[], object]:
    """One call as a model in training makes it: no final state; gradients of every tensor."""
    operator, options = problem.operator, {**problem.options, "backend": backend, "output_final_state": False}
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return operator.run(**problem.tensors, **options)[0]

        return forward
    tensors = leaves(problem)
    wanted = [x for x in tensors.values() if x is not None]

    def both() -> object:
        output, _ = operator.run(**tensors, **options)
        return torch.autograd.grad(output, wanted, problem.grad_output)

    return both


def _sdpa(shape: str, direction: str) -> Callable[[], object]:
    batch, tokens, width, head = parse_shape(shape)
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(batch, width // head, tokens, head, generator=generator) for _ in range(4)]
    q, k, v = (x.requires_grad_(direction != "forward") for x in draw[:3])
    attention = torch.nn.functional.scaled_dot_product_attention

    def forward() -> Tensor:
        return attention(q, k, v, is_causal=True)

    def both() -> object:
        return torch.autograd.grad(forward(), (q, k, v), draw[3])

    return forward if direction == "forward" else both
