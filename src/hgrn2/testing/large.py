"""Problems too long or too wide for the token loop: the chunked form in float64 is the reference.

The chunked form itself is held to the token loop by the contracts, also in float64. A result may be off by a small
multiple of what the chunked form loses in the dtype of the inputs, plus a few roundings. For 16-bit inputs one epsilon
of bfloat16 is added: their products may have bfloat16 operands, also where the result is float32 or the inputs float16.

Where the input has an activation, plain PyTorch rounds it before a scan sees it (`i = i.sigmoid()`), and so do kernels.
Values of one sign make that rounding matter: dγ is then a difference of two sums that are each several times as large
(measured: 5.3e-3 of dγ for sigmoid at T 131, everything else exact). So what is lost there is measured too,
for dγ alone.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype
from hgrn2.ops.hgru2.chunked import ONE_PRODUCT_LOWER_BOUND
from hgrn2.testing.cases import Problem
from hgrn2.testing.compare import FACTOR, FLOOR, ONE_PRODUCT_FLOOR, Finding, relative_error
from hgrn2.testing.evaluation import Results, evaluate

_LOWER_BOUND = "d lower_bound"


@dataclass(frozen=True)
class Expected:
    """The reference of a problem and how far from it each result may lie."""

    results: Results
    allowed: dict[str, float]


def expect(problem: Problem) -> Expected:
    """Output, final state and gradients in float64, and tolerances measured on the very same numbers."""
    float64_reference, plain = evaluate(problem.to(torch.float64), "chunked"), evaluate(problem, "chunked")
    lost = {name: relative_error(x, float64_reference[name]) for name, x in plain.items()}
    if (rounded := _lower_bound_gradient_of_rounded_input(problem)) is not None:
        lost[_LOWER_BOUND] = max(lost[_LOWER_BOUND], relative_error(rounded, float64_reference[_LOWER_BOUND]))
    return Expected(float64_reference, {name: FACTOR * loss + _floor(problem) for name, loss in lost.items()})


def _lower_bound_gradient_of_rounded_input(problem: Problem) -> Tensor | None:
    """dγ where 16-bit inputs have their activation taken in their dtype; None where there is none, or no lower
    bound."""
    kind, i = problem.options.get("input_activation") or "none", problem.tensors.get("i")
    if kind == "none" or i is None or torch.finfo(i.dtype).bits >= 32 or problem.tensors.get("lower_bound") is None:
        return None
    activated = getattr(torch.nn.functional, kind)(i)
    rounded = replace(
        problem,
        tensors={**problem.tensors, "i": activated},
        options={**problem.options, "input_activation": "none"},
    )
    return evaluate(rounded, "chunked")[_LOWER_BOUND]


def _floor(problem: Problem) -> float:
    dtype, lower_bound = problem.grad_output.dtype, problem.tensors.get("lower_bound")
    if torch.finfo(dtype).bits < 32:
        return torch.finfo(torch.bfloat16).eps
    one_product = lower_bound is not None and bool((lower_bound >= ONE_PRODUCT_LOWER_BOUND).any())
    return (ONE_PRODUCT_FLOOR if one_product else FLOOR) * torch.finfo(work_dtype(dtype)).eps


def compare(expected: Expected, got: Results, factor: float = 1.0, where: str = "") -> list[Finding]:
    """One finding a result of `got`; NaN is never right. `factor` widens the tolerance."""
    return [
        Finding(name + where, relative_error(x, expected.results[name]), factor * expected.allowed[name])
        for name, x in got.items()
    ]


def matches_chunked(problem: Problem, backend: str) -> list[Finding]:
    """Output, final state and all gradients of a backend against the float64 reference."""
    return compare(expect(problem), evaluate(problem, backend))
