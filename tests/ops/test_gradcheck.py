"""Gradients against finite differences in float64: the reference too, for it is the reference of all other tests."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hgrn2.testing.cases import Case, build, packed
from hgrn2.testing.evaluation import leaves, run

HGRU2 = Case(op="hgru2", batch=1, tokens=5, heads=2, key=2, value=3, lower_bound="small")
CASES = (
    HGRU2,
    replace(HGRU2, lower_bound="high", options=(("reverse", True), ("scale", 0.5))),
    replace(HGRU2, lower_bound="none", options=(("input_activation", "silu"), ("output_activation", "sigmoid"))),
    replace(HGRU2, gates="wide", options=(("input_activation", "sigmoid"), ("output_activation", "none"))),
    packed(HGRU2, (2, 0, 3)),
    Case(op="gated_outer_scan", batch=1, tokens=5, key=2, value=3, gates="wide"),
    Case(op="gated_outer_scan", batch=1, tokens=5, key=3, value=1, options=(("reverse", True), ("scale", 0.5))),
    Case(op="gated_scan", tokens=5, key=2),
    Case(op="gated_scan", tokens=5, key=2, complex=True, options=(("reverse", True),)),
    packed(Case(op="gated_scan", key=2, complex=True), (2, 0, 3)),
    Case(op="causal_conv", tokens=5, key=2, taps=3),
    packed(Case(op="causal_conv", key=2, taps=3), (1, 0, 4)),
)


def check(case: Case, backend: str) -> None:
    problem = build(case, torch.float64)
    tensors = {name: x for name, x in leaves(problem).items() if x is not None}

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return run(problem, backend, dict.fromkeys(problem.tensors) | dict(zip(tensors, values, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    check(case, backend)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck_of_the_reference(case: Case) -> None:
    check(case, "reference")


@pytest.mark.parametrize("op", ["hgru2", "gated_outer_scan"])
def test_gradcheck_across_a_chunk_boundary(op: str, backend: str) -> None:
    check(Case(op=op, batch=1, tokens=66, heads=1, key=1, value=1), backend)
