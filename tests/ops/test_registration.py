"""The custom operators as PyTorch sees them: schema, fake tensors, autograd, torch.compile, autocast."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hgrn2 import ops
from hgrn2.ops import backend as backends
from hgrn2.testing.cases import OPERATORS, Case, Problem, build, packed
from hgrn2.testing.compare import different_bits
from hgrn2.testing.evaluation import Tensors, differentiate, evaluate, leaves, run

TINY = (
    Case(op="hgru2", tokens=5, key=3, value=2, lower_bound="mixed"),
    packed(Case(op="hgru2", tokens=5, key=3, value=2, state=False), (2, 0, 3)),
    Case(op="gated_outer_scan", tokens=5, key=3, value=2),
    Case(op="gated_scan", tokens=5, key=3),
    packed(Case(op="gated_scan", tokens=5, key=3, complex=True, state=False), (2, 0, 3)),
    Case(op="causal_conv", tokens=5, key=3),
    packed(Case(op="causal_conv", tokens=5, key=3), (2, 0, 3)),
)


def arguments(case: Case, problem: Problem, tensors: Tensors, backend: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Positional tensors and options of the case's custom operator."""
    given = (*tensors.values(), problem.cu_seqlens)
    options = {
        "hgru2": (case.heads, False, "silu", "sigmoid", 0.5, backend),
        "gated_outer_scan": (False, 0.5, backend),
        "gated_scan": (False, backend),
        "causal_conv": (),
    }
    return given, options[case.op]


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, torch.float32) for case in TINY), (TINY[0], torch.bfloat16)], ids=str
)
def test_opcheck(case: Case, dtype: torch.dtype, backend: str) -> None:
    if case.op == "causal_conv" and backend != "native":
        pytest.skip("the chunked convolution is plain PyTorch, no custom operator")
    problem = build(case, dtype)
    given, options = arguments(case, problem, leaves(problem), backend)
    forward = getattr(torch.ops.hgrn2, case.op).default
    torch.library.opcheck(forward, (*given, *options))
    given, _ = arguments(case, problem, problem.tensors, backend)
    if case.op == "gated_scan":  # its backward reads h
        given = (*given[:2], forward(*given, *options)[0], *given[2:])
    backward = getattr(torch.ops.hgrn2, f"{case.op}_backward").default
    torch.library.opcheck(backward, (*given, problem.grad_output, problem.grad_state, *options))


def compiled(operator: Any, backend: Any = "aot_eager") -> Any:
    """The operator with its public function compiled as one graph."""
    return replace(operator, run=torch.compile(operator.run, fullgraph=True, backend=backend, dynamic=False))


@pytest.mark.parametrize("case", TINY, ids=str)
def test_compiles_as_one_graph_with_and_without_gradients(case: Case, backend: str) -> None:
    torch._dynamo.reset()
    problem = build(case, torch.float32)
    traced = replace(problem, operator=compiled(problem.operator))
    want, got = evaluate(problem, backend), evaluate(traced, backend)
    assert {name: different_bits(x, want[name]) for name, x in got.items()} == dict.fromkeys(want, 0)
    with torch.no_grad():
        output, state = run(traced, backend)
    assert different_bits(output, want["output"]) == 0
    assert different_bits(state, want["state"]) == 0


def test_auto_compiles_too_and_bakes_its_choice_in() -> None:
    torch._dynamo.reset()
    problem = build(TINY[0], torch.float32)
    traced = replace(problem, operator=compiled(problem.operator))
    assert different_bits(run(traced, "auto")[0], run(problem, "auto")[0]) == 0


@pytest.mark.parametrize("case", [case for case in TINY if case.lengths], ids=str)
def test_other_document_lengths_do_not_recompile(case: Case, backend: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    problem = build(case, torch.float32)
    traced = replace(problem, operator=compiled(problem.operator, counter))
    for ends in ([0, 2, 2, 5], [0, 0, 4, 5], [0, 1, 2, 5]):
        packing = {"cu_seqlens": torch.tensor(ends)}
        assert (
            different_bits(run(replace(traced, **packing), backend)[0], run(replace(problem, **packing), backend)[0])
            == 0
        )
    assert counter.frame_count == 1


AUTOCAST = list(dict.fromkeys(replace(case, tokens=70, lengths=(), batch=2) for case in TINY if not case.complex))


@pytest.mark.parametrize("case", AUTOCAST, ids=str)
def test_autocast_changes_nothing_inside_an_operator(case: Case, backend: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        problem = build(case, dtype)
        want = evaluate(problem, backend)
        with torch.autocast("cpu", torch.bfloat16):
            got = evaluate(problem, backend)
        assert {name: different_bits(x, want[name]) for name, x in got.items()} == dict.fromkeys(want, 0)


@pytest.mark.parametrize("case", AUTOCAST, ids=str)
def test_autocast_changes_nothing_in_the_reference(case: Case) -> None:
    problem = build(replace(case, tokens=7), torch.float32)
    want, tensors = evaluate(problem, "reference"), leaves(problem)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(problem, "reference", tensors)
    got = differentiate(problem, tensors, *results)
    assert {name: different_bits(x, want[name]) for name, x in got.items()} == dict.fromkeys(want, 0)


@pytest.mark.parametrize("case", AUTOCAST, ids=str)
def test_autocast_changes_nothing_in_a_step(case: Case, backend: str) -> None:
    problem = build(case, torch.float32)
    one = {k: x[:, 0] if k in problem.operator.per_token else x for k, x in problem.tensors.items()}
    one["state"] = run(problem, backend)[1]
    want = problem.operator.step(**one, **problem.options, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = problem.operator.step(**one, **problem.options, backend=backend)
    assert [different_bits(x, y) for x, y in zip(got, want, strict=True)] == [0, 0]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_only_wanted_gradients_are_returned(case: Case, backend: str) -> None:
    problem = build(case, torch.float32)
    names = [name for name, x in problem.tensors.items() if x is not None]
    want = evaluate(problem, backend)
    for name in names:
        tensors = {k: x if x is None or k != name else x.clone().requires_grad_() for k, x in problem.tensors.items()}
        results = differentiate(problem, {name: tensors[name]}, *run(problem, backend, tensors))
        assert different_bits(results[f"d {name}"], want[f"d {name}"]) == 0


def check_dtypes(run_op: Callable[..., Any], main: str, tensors: dict[str, Tensor], **options: Any) -> None:
    """The output has the dtype of the main input, the state is float32, gradients have their inputs' dtypes."""
    output, state = run_op(**tensors, **options)
    assert output.dtype == tensors[main].dtype
    assert state.dtype == torch.float32
    grads = torch.autograd.grad([output.sum() + state.sum()], list(tensors.values()))
    assert [g.dtype for g in grads] == [x.dtype for x in tensors.values()]


@pytest.mark.parametrize("which", ["fast", "reference"])
def test_mixed_dtypes_give_the_main_inputs_dtype_and_gradients_of_each_own(which: str, backend: str) -> None:
    def leaf(dtype: torch.dtype, *shape: int) -> Tensor:
        x = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))
        return x.to(dtype).requires_grad_()

    low, mid, high = torch.bfloat16, torch.float32, torch.float64
    options = {"backend": backend if which == "fast" else "reference"}
    tensors = {"q": leaf(mid, 1, 5, 4), "f": leaf(high, 1, 5, 4), "i": leaf(low, 1, 5, 4)}
    tensors |= {"lower_bound": leaf(mid, 4), "state": leaf(low, 1, 2, 2, 2)}
    check_dtypes(ops.hgru2, "i", tensors, heads=2, **options)
    shape = (1, 5, 2, 2)
    tensors = {"q": leaf(mid, *shape), "k": leaf(low, *shape), "v": leaf(low, *shape), "log_f": leaf(mid, *shape)}
    check_dtypes(ops.gated_outer_scan, "v", tensors, **options)
    check_dtypes(ops.gated_scan, "x", {"x": leaf(low, 1, 5, 4), "f": leaf(mid, 1, 5, 4)}, **options)
    check_dtypes(ops.causal_conv, "x", {"x": leaf(low, 1, 5, 4), "weight": leaf(mid, 4, 3)}, **options)


def test_second_derivatives_are_refused_by_fast_backends_not_wrong(backend: str) -> None:
    problem = build(TINY[0], torch.float64)
    tensors = leaves(problem)
    output, _ = run(problem, backend, tensors)
    (first,) = torch.autograd.grad(output.square().sum(), [tensors["q"]], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are computed by backend='reference' alone"):
        torch.autograd.grad(first.sum(), [tensors["f"]])


def test_state_is_not_returned_where_it_is_not_wanted() -> None:
    for name, operator in OPERATORS.items():
        problem = build(next(case for case in TINY if case.op == name), torch.float32)
        for which in ("auto", "chunked", "reference"):
            packing = {} if problem.cu_seqlens is None else {"cu_seqlens": problem.cu_seqlens}
            options = {**problem.options, **packing, "output_final_state": False, "backend": which}
            tensors = leaves(problem)
            output, state = operator.run(**tensors, **options)
            assert state is None
            torch.autograd.grad(output.abs().sum(), [tensors[operator.per_token[0]]])


def test_constant_functions_are_marked_as_pytorch_marks_them() -> None:
    """The decorator that needs no compiler to be imported says the same as PyTorch's own."""
    ours, theirs = (
        mark(lambda: 1) for mark in (backends.constant_when_compiled, torch.compiler.assume_constant_result)
    )
    assert vars(ours) == vars(theirs) != {}
