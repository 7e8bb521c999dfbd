"""The Triton kernels of gated_outer_scan in Triton's interpreter, in float32."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.ops.gated_outer_scan.triton import launch_table as table
from hgrn2.testing.cases import Case, packed
from hgrn2.testing.compare import failures
from hgrn2.testing.contracts import contracts_for

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU here (test_gpu_contracts.py)"
)

_OUTER = Case(op="gated_outer_scan", batch=1, heads=1)
OUTER = (
    *(replace(_OUTER, gates=gates) for gates in ("wide", "floor", "extremes", "infinite")),
    *(replace(_OUTER, tokens=tokens, heads=2) for tokens in (0, 1, 7, 64, 130)),
    replace(_OUTER, key=24, value=40, batch=2, options=(("reverse", True), ("scale", 0.25))),
    packed(replace(_OUTER, state=False), (0, 1, 70, 0, 64)),
)


@pytest.mark.parametrize("case", OUTER, ids=str)
def test_accuracy(case: Case) -> None:
    assert not failures(contracts_for(case, torch.float32)["matches_reference"](case, "triton", torch.float32))


@pytest.mark.parametrize(
    "name", ["repeats_bitwise", "writes_all_its_memory", "outputs_are_fresh", "documents_do_not_mix"]
)
def test_contract(name: str) -> None:
    case = packed(Case(op="gated_outer_scan", heads=1), (0, 2, 65, 0))
    assert not failures(contracts_for(case, torch.float32)[name](case, "triton", torch.float32))


def integers(*shape: int) -> Tensor:
    """Small whole numbers: their sums and products are exact in float32."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def test_gate_of_exactly_one_sums_exactly() -> None:
    q, k, v = integers(1, 70, 1, 16), integers(1, 70, 1, 17)[..., 1:], integers(1, 70, 1, 18)[..., 2:]
    o, state = ops.gated_outer_scan(q, k, v, torch.zeros_like(k), backend="triton")
    outer = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(1)
    assert torch.equal(o, (q.unsqueeze(-2) @ outer).squeeze(-2))
    assert state is not None
    assert torch.equal(state, outer[:, -1])


def test_gate_of_exactly_zero_keeps_only_the_present() -> None:
    q, k, v = integers(1, 70, 1, 16), integers(1, 70, 1, 17)[..., 1:], integers(1, 70, 1, 18)[..., 2:]
    start = torch.full((1, 1, 16, 16), 1e30)
    o, state = ops.gated_outer_scan(q, k, v, torch.full_like(k, -torch.inf), state=start, backend="triton")
    assert torch.equal(o, (q * k).sum(-1, keepdim=True) * v)
    assert state is not None
    assert torch.equal(state, k[:, -1].unsqueeze(-1) * v[:, -1].unsqueeze(-2))


def test_gate_of_exactly_zero_has_no_gradient_before_it() -> None:
    q, k, v = (integers(1, 9, 1, 16 + n)[..., n:].clone().requires_grad_() for n in range(3))
    log_f = torch.full((1, 9, 1, 16), -0.5)
    log_f[:, 5] = -torch.inf
    log_f.requires_grad_()
    start = torch.ones(1, 1, 16, 16, requires_grad=True)
    o, state = ops.gated_outer_scan(q, k, v, log_f, state=start, backend="triton")
    assert state is not None
    *grads, d_state = torch.autograd.grad((o[:, 5:] * torch.arange(16)).sum() + state.sum(), [k, v, log_f, start])
    assert not d_state.any()
    assert all(not g[:, :5].any() and g[:, 5:].isfinite().all() for g in grads)
    assert not grads[2][:, 5].any()
    assert grads[0][:, 5].any()


def tiles(dtype: torch.dtype, keys: int, values: int, op_pass: str = "output") -> tuple[int, int]:
    from hgrn2.ops.gated_outer_scan.triton.plan import plan_call

    return plan_call(1, 70, 1, keys, values, None, torch.empty(0, dtype=dtype)).tiles(op_pass)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_tile_that_is_compiled_wrongly_is_used(dtype: torch.dtype) -> None:
    assert tiles(dtype, 32, 24) == (64, 64)
    assert tiles(dtype, 16, 32) == (16, 64)
    assert tiles(dtype, 16, 5) == (16, 16)
    assert tiles(dtype, 64, 128) == (64, 128)
    assert tiles(torch.float32, 32, 24) == tiles(dtype, 32, 24, "states") == (32, 32)
    for n in (8, 16, 24, 32, 64, 128):
        for launch in table.candidates("output", n, str(dtype).removeprefix("torch.")):
            assert table.MISCOMPILED not in (launch.keys, launch.values)


def test_small_heads_work_in_float32() -> None:
    # With bfloat16 operands of products one number of a 1 x 1 state has the whole rounding of both (docs/log.md).
    from hgrn2.ops.gated_outer_scan.triton.plan import plan_call

    for keys, values, dtype in ((1, 1, torch.float32), (4, 15, torch.float32), (16, 1, torch.bfloat16)):
        like = torch.empty(0, dtype=torch.bfloat16)
        assert plan_call(1, 70, 1, keys, values, None, like).dtype == dtype


def test_tiles_wider_than_the_head_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrn2.ops.gated_outer_scan.triton import plan

    case = Case(op="gated_outer_scan", batch=1, heads=2, tokens=70, key=32, value=32)
    monkeypatch.setattr(plan, "avoided", lambda op_pass, dtype: table.MISCOMPILED)
    assert tiles(torch.float32, 32, 32) == (64, 64)
    assert not failures(contracts_for(case, torch.float32)["matches_reference"](case, "triton", torch.float32))
