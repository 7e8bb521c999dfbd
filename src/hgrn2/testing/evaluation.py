"""Run a problem on a backend, collect all that contracts compare, the reference and the error of a plain loop."""

import functools
from dataclasses import replace

import torch
from torch import Tensor

from hgrn2.testing.cases import Case, Operator, Problem, build
from hgrn2.testing.compare import relative_error

Tensors = dict[str, Tensor | None]
Results = dict[str, Tensor]
"""`output`, `state`, and `d NAME` for the gradient of each tensor argument."""


def run(problem: Problem, backend: str, tensors: Tensors | None = None) -> tuple[Tensor, Tensor]:
    """(output, final state) of a problem, or of other tensors with its options."""
    chosen = problem.tensors if tensors is None else tensors
    packing = {} if problem.cu_seqlens is None else {"cu_seqlens": problem.cu_seqlens}
    output, state = problem.operator.run(**chosen, **packing, **problem.options, backend=backend)
    assert state is not None
    return output, state


def leaves(problem: Problem) -> Tensors:
    """The tensors of a problem as fresh leaves that collect gradients."""
    return {k: None if x is None else x.detach().clone().requires_grad_() for k, x in problem.tensors.items()}


def differentiate(problem: Problem, tensors: Tensors, output: Tensor, state: Tensor) -> Results:
    """Results with the gradients of `tensors` for the problem's gradients of output and state."""
    named = {name: x for name, x in tensors.items() if x is not None}
    ends = [(x, g) for x, g in ((output, problem.grad_output), (state, problem.grad_state)) if x.requires_grad]
    found = torch.autograd.grad(
        [x for x, _ in ends], list(named.values()), [g for _, g in ends], allow_unused=True, materialize_grads=True
    )
    grads = {f"d {name}": g for name, g in zip(named, found, strict=True)}
    return {"output": output.detach(), "state": state.detach()} | grads


def evaluate(problem: Problem, backend: str) -> Results:
    """Output, final state and all gradients on a backend."""
    tensors = leaves(problem)
    return differentiate(problem, tensors, *run(problem, backend, tensors))


@functools.lru_cache(maxsize=64)
def float64_reference(case: Case, dtype: torch.dtype) -> Results:
    """The reference in float64 on the inputs as rounded to `dtype`."""
    results = evaluate(build(case, dtype).to(torch.float64), "reference")
    assert all(x.isfinite().all() for x in results.values()), f"the float64 reference is not finite for {case}"
    return results


@functools.lru_cache(maxsize=64)
def loss(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """What the plain token loop in `dtype` loses against the reference, for each result.

    In float64 the loop is the reference and cannot be measured against itself: it loses as many epsilons as in float32.
    """
    if dtype == torch.float64:
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        return {name: ratio * lost for name, lost in loss(case, torch.float32).items()}
    results = evaluate(build(case, dtype), "reference")
    return {name: relative_error(x, float64_reference(case, dtype)[name]) for name, x in results.items()}


def problem_of(case: Case, dtype: torch.dtype, operator: Operator | None) -> Problem:
    """The case's problem, for the given operator in place of its own (a test of the contracts passes a broken one)."""
    problem = build(case, dtype)
    return problem if operator is None else replace(problem, operator=operator)
