"""Every backend in the registry that serves the CPU keeps every contract; and when `auto` takes which form of hgru2."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.doctor.checks import call_of
from hgrn2.ops.backend import REGISTRY, STEPS, Backend, find, names
from hgrn2.testing.cases import OPERATORS, Case, build, packed
from hgrn2.testing.compare import different_bits, failures
from hgrn2.testing.contracts import contracts_for, matches_reference
from hgrn2.testing.evaluation import evaluate, run

NAME = "elementwise"
TINY = Case(op="hgru2", tokens=9, heads=3, key=2, value=2, gates="wide", lower_bound="mixed")
ONE = replace(TINY, key=1, value=1, gates="infinite")
CASES = (
    TINY,
    ONE,
    replace(TINY, options=(("reverse", True), ("input_activation", "silu"), ("scale", 0.7))),
    packed(TINY, (2, 0, 3, 4)),
    packed(replace(ONE, state=False), (2, 0, 3, 4)),
    *(Case(op=op, tokens=9, key=2, value=2) for op in OPERATORS if op != "hgru2"),
)


def examined(case: Case) -> list[str]:
    """The backends that doctor would hold to this case on a CPU."""
    call = call_of(case.op, torch.device("cpu"), torch.float32, case)
    return [one.name for one in REGISTRY[case.op] if one.examined(call)]


@pytest.mark.parametrize(
    ("case", "name", "contract"),
    [(case, name, x) for case in CASES for name in examined(case) for x in contracts_for(case, torch.float32)],
    ids=str,
)
def test_contracts(case: Case, name: str, contract: str) -> None:
    able, why = find(case.op, name).supports(call_of(case.op, torch.device("cpu"), torch.float32, case))
    if not able:
        pytest.skip(why)
    operator = OPERATORS[case.op]
    if find(case.op, name).step is None:  # any step serves
        step = operator.step
        operator = replace(operator, step=lambda *, backend, **call: step(**call, backend="auto"))
    assert not failures(contracts_for(case, torch.float32)[contract](case, name, torch.float32, operator))


def test_the_registry_is_complete() -> None:
    assert {*REGISTRY} == {
        *OPERATORS,
        *STEPS.values(),
        "gated_unit",
        "linear_cross_entropy",
        "rms_norm",
        "selective_scan",
    }
    for op, backends in REGISTRY.items():
        assert len({one.name for one in backends}) == len(backends) > 0
        assert all(isinstance(one, Backend) for one in backends)
        assert backends[-1].plain, "the last one serves every call"
        assert find(op, names(op)[0]) is backends[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("key", "value"), [(1, 1), (1, 3), (3, 1), (3, 3), (4, 6), (12, 12)])
def test_any_head_in_any_dtype(key: int, value: int, dtype: torch.dtype) -> None:
    for gates in ("skips", "extremes"):
        case = replace(TINY, key=key, value=value, gates=gates, lower_bound="small")
        assert not failures(matches_reference(case, NAME, dtype))


def call(heads: int, width: int = 12) -> dict[str, Any]:
    q, f, i = torch.randn(3, 2, 9, width, generator=torch.Generator().manual_seed(heads))
    return {"q": q, "f": f, "i": i, "heads": heads}


@pytest.mark.parametrize(("n", "chosen"), [(1, True), (2, True), (3, True), (4, False), (6, False)])
def test_auto_takes_it_for_heads_of_one_to_three_on_a_cpu(n: int, chosen: bool) -> None:
    given = call(12 // n)
    assert (f"runs on {NAME}: " in ops.explain("hgru2", **given)) == chosen
    auto, named = (ops.hgru2(**given, backend=backend)[0] for backend in ("auto", NAME))
    assert (different_bits(auto, named) == 0) == chosen


def test_auto_leaves_heads_whose_values_are_wider_alone() -> None:
    given: dict[str, Any] = {**call(6), "i": torch.randn(2, 9, 24)}
    assert f"runs on {NAME}" not in ops.explain("hgru2", **given)


def test_a_mixer_runs_what_explain_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrn2.layers.config import MixerConfig
    from hgrn2.layers.hgru2 import HGRU2

    ran: list[str] = []
    for one in REGISTRY["hgru2"]:
        if one.composed:
            right = one.forward
            monkeypatch.setattr(
                type(one), "forward", lambda self, *a, right=right, name=one.name: (ran.append(name), right(*a))[1]
            )
    HGRU2(6, MixerConfig(head_size=2))(torch.randn(1, 5, 6))
    assert ran == [NAME]


@pytest.mark.parametrize("n", [1, 2])
def test_bfloat16_loses_no_more_than_the_outer_form(n: int) -> None:
    generator, heads = torch.Generator().manual_seed(n), 12 // n
    given: dict[str, Any] = {k: x.bfloat16() if isinstance(x, Tensor) else x for k, x in call(heads).items()}
    given["f"] = 5 * given["f"]
    given |= {
        "lower_bound": torch.rand(12, generator=generator),
        "state": torch.randn(2, heads, n, n, generator=generator),
    }
    exact = {k: x.double() if isinstance(x, Tensor) else x for k, x in given.items()}
    wanted, last = ops.hgru2(**exact, backend="reference")
    assert last is not None
    errors = []
    for backend in (NAME, "chunked"):
        o, final = ops.hgru2(**given, backend=backend)
        assert final is not None
        assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
        errors.append((float((o - wanted).abs().max()), float((final - last).abs().max())))
    floor = torch.finfo(torch.bfloat16).eps * float(wanted.abs().max())
    assert errors[0][0] <= 1.2 * errors[1][0] + floor
    assert errors[0][1] <= 1.2 * errors[1][1] + 10 * torch.finfo(torch.float32).eps * float(last.abs().max())


@pytest.mark.parametrize("n", [1, 2])
def test_gradients_of_gates_near_one_keep_their_digits(n: int) -> None:
    """float32, σ(x) of 1 - 5e-5 to 1 - 8e-7: y (1 - y) would have lost three to five digits of the slope."""

    def gradients(backend: str, dtype: torch.dtype) -> list[Tensor]:
        given: dict[str, Any] = {k: x.to(dtype) if isinstance(x, Tensor) else x for k, x in call(12 // n).items()}
        given["f"] = (12 + given["f"].clamp(-2, 2)).requires_grad_()
        lower_bound = torch.rand(12, generator=torch.Generator().manual_seed(n)).to(dtype).requires_grad_()
        o, _ = ops.hgru2(**given, lower_bound=lower_bound, backend=backend)
        loss = (o * torch.arange(o.numel()).view_as(o).cos().to(dtype)).sum()
        return [x.double() for x in torch.autograd.grad(loss, [given["f"], lower_bound])]

    expected = gradients("reference", torch.float64)
    for ours, others, exact in zip(*(gradients(x, torch.float32) for x in (NAME, "chunked")), expected, strict=True):
        error, theirs = ((x - exact).norm() / exact.norm() for x in (ours, others))
        assert error <= 2 * theirs + 10 * torch.finfo(torch.float32).eps


def test_compiles_as_one_graph_in_whole() -> None:
    torch._dynamo.reset()
    problem = build(TINY, torch.float32)
    traced = replace(problem.operator, run=torch.compile(ops.hgru2, fullgraph=True, backend="aot_eager", dynamic=False))
    want, got = evaluate(problem, "auto"), evaluate(replace(problem, operator=traced), "auto")
    assert {name: different_bits(x, want[name]) for name, x in got.items()} == dict.fromkeys(want, 0)
    assert different_bits(run(problem, NAME)[0], want["output"]) == 0
