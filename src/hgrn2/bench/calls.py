"""What is timed: one call of an operator as a model in training makes it, ours and the baselines' through one
interface."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.testing.cases import Problem
from hgrn2.testing.compare import Finding
from hgrn2.testing.evaluation import Results, leaves
from hgrn2.testing.large import Expected, compare


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One implementation of an operator: its name and backend, forward, forward and backward, and its check."""

    subject: str
    backend: str
    forward: Callable[[], Sequence[Tensor]]
    """Without gradients: (output,)."""
    both: Callable[[], Sequence[Tensor]]
    """(output, gradient of every input)."""
    check: Callable[[], list[Finding]]
    """Runs both ways and says how far from the float64 reference every result lies."""

    def call(self, direction: str) -> Callable[[], Sequence[Tensor]]:
        """`forward` or `fwd+bwd`."""
        return self.forward if direction == "forward" else self.both


def differentiable(
    run: Callable[[Mapping[str, Tensor]], Tensor], tensors: Mapping[str, Tensor], grad_output: Tensor
) -> tuple[Callable[[], Sequence[Tensor]], Callable[[], Sequence[Tensor]], Callable[[], Results]]:
    """Forward, both directions, and both again with names, of a function of named leaves."""

    def forward() -> Sequence[Tensor]:
        with torch.no_grad():
            return (run(tensors),)

    def both() -> Sequence[Tensor]:
        output = run(tensors)
        return output.detach(), *torch.autograd.grad(output, list(tensors.values()), grad_output)

    def results() -> Results:
        names = ("output", *(f"d {name}" for name in tensors))
        return dict(zip(names, both(), strict=True))

    return forward, both, results


def ours(
    problem: Problem, backend: str, expected: Callable[[], Expected], looked_at: Callable[[Results], Results]
) -> Implementation:
    """An operator of this package; no final state is asked for. `looked_at` picks what `expected` speaks of."""
    options = {**problem.options, "backend": backend, "output_final_state": False}
    tensors = {name: x for name, x in leaves(problem).items() if x is not None}
    forward, both, results = differentiable(
        lambda given: problem.operator.run(**given, **options)[0], tensors, problem.grad_output
    )

    def check() -> list[Finding]:
        (alone,) = forward()
        named = results()
        whole = [Finding(f"{k}: values that are not finite", int((~x.isfinite()).sum()), 0) for k, x in named.items()]
        without = compare(expected(), looked_at({"output": alone}), where=" alone")
        return [*whole, *without, *compare(expected(), looked_at(named))]

    return Implementation(subject="hgrn2", backend=backend, forward=forward, both=both, check=check)
