"""Speed of the operators on each backend of this machine, after every one of them has proved itself right."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hgrn2.bench.record import Row, measurement
from hgrn2.bench.settings import OpsBench, parse_shape
from hgrn2.bench.timing import Progress, Sample, interleave, prepare_process, repeated, silent
from hgrn2.errors import UserError
from hgrn2.ops import backend as backends
from hgrn2.testing.cases import Case, Problem, build
from hgrn2.testing.compare import failures
from hgrn2.testing.contracts import matches_reference
from hgrn2.testing.evaluation import leaves

PASSES = ("forward", "fwd+bwd")
OUTER = ("hgru2", "gated_outer_scan")
"""Operators that do the work of attention; the first one measured has SDPA beside it."""
Key = tuple[str, str, str]
"""Operator, subject, backend."""
GATE_BATCH, GATE_TOKENS = 2, 129  # two chunks and a token


class WrongResult(Exception):
    """A backend misses the reference: its speed would mean nothing. The message has a line for each failure."""


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
    conditions = prepare_process(bench.limits)
    verify(bench, progress)
    chosen = available(bench.backends)
    for shape in bench.shapes:
        for direction in PASSES:
            samples: dict[Key, Sample] = {}
            for op in bench.ops:
                problem = build(case_of(op, shape), torch.float32)
                samples |= {(op, "hgrn2", name): repeated(_call(problem, name, direction)) for name in chosen}
            if peer := next((op for op in OUTER if op in bench.ops), None):
                samples[peer, "sdpa", "torch"] = repeated(_sdpa(shape, direction))
            taken = interleave(samples, bench.limits, f"{shape} {direction}", progress)
            for row in _rows(shape, direction, taken, conditions):
                record(row)


def _rows(shape: str, direction: str, taken: dict[Key, list[float]], conditions: dict[str, Any]) -> Iterator[Row]:
    for (op, subject, backend), times in taken.items():
        case = {"op": op, "pass": direction, "BxTxDxn": shape, "dtype": "float32"}
        yield measurement("ops", case, subject, backend, [1e3 * seconds for seconds in times], "ms", conditions)


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
    """Causal attention with as many heads of the same size, no projections on either side."""
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
