"""The Triton kernels of hgru2 in Triton's interpreter, in float32: contracts, segments, steps, what is refused."""

from dataclasses import replace

import pytest
import torch

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.testing.cases import Case, build, packed
from hgrn2.testing.compare import different_bits, failures, relative_error
from hgrn2.testing.contracts import contracts_for, near
from hgrn2.testing.evaluation import differentiate, evaluate, float64_reference, leaves, run

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU here (test_gpu_contracts.py)"
)

_RAW = Case(op="hgru2", batch=1, heads=1, lower_bound="small")
HGRU2 = (
    *(replace(_RAW, gates=gates, lower_bound=lower_bound) for gates, lower_bound in (
        ("wide", "none"), ("low", "zero"), ("high", "zero"), ("floor", "small"), ("ceiling", "mixed"),
        ("extremes", "none"), ("infinite", "zero"), ("skips", "high"), ("steep", "edge"),
        ("extremes", "high"), ("wide", "mixed"),
    )),
    *(replace(_RAW, tokens=tokens, heads=2, lower_bound=lower_bound) for tokens, lower_bound in (
        (0, "small"), (1, "high"), (7, "none"), (63, "high"), (64, "small"), (127, "edge"), (130, "zero"),
    )),
    replace(_RAW, key=128, value=128, lower_bound="high", tokens=70),
    replace(_RAW, key=32, value=24, batch=2, state=False, options=(("reverse", True), ("scale", 0.25))),
    *(replace(_RAW, key=n, value=n, heads=3, gates=gates, lower_bound=lower_bound) for n, gates, lower_bound in (
        (1, "wide", "high"), (2, "infinite", "mixed"), (3, "extremes", "small"), (4, "wide", "high"),
        (4, "infinite", "none"), (8, "extremes", "edge"),
    )),
    replace(_RAW, key=4, value=4, heads=2, batch=2, options=(("input_activation", "silu"), ("reverse", True))),
    packed(replace(_RAW, key=4, value=4, heads=2, lower_bound="high"), (0, 66, 1, 0)),
    replace(_RAW, key=5, value=3, options=(("input_activation", "silu"), ("output_activation", "sigmoid"))),
    replace(_RAW, key=40, lower_bound="edge", options=(("input_activation", "sigmoid"), ("output_activation", None))),
    packed(replace(_RAW, lower_bound="mixed"), (0, 1, 70, 0, 3, 64, 0)),
    packed(replace(_RAW, lower_bound="high", options=(("reverse", True),)), (0, 66, 2, 0)),
)  # fmt: skip


@pytest.mark.parametrize("case", HGRU2, ids=str)
def test_accuracy(case: Case) -> None:
    assert not failures(contracts_for(case, torch.float32)["matches_reference"](case, "triton", torch.float32))


STRUCTURE = (
    Case(op="hgru2", batch=1, heads=1, tokens=67, lower_bound="zero", gates="infinite"),
    Case(op="hgru2", batch=1, heads=1, tokens=67, lower_bound="high"),
    packed(Case(op="hgru2", heads=1, lower_bound="mixed"), (0, 2, 65, 0)),
    Case(op="hgru2", batch=1, heads=2, key=4, value=4, tokens=67, lower_bound="high"),
)
NAMES = ("repeats_bitwise", "writes_all_its_memory", "outputs_are_fresh", "future_does_not_leak",
         "documents_do_not_mix", "packed_equals_separate", "steps_equal_whole")  # fmt: skip


@pytest.mark.parametrize(
    ("case", "name"), [(c, n) for c in STRUCTURE for n in contracts_for(c, torch.float32) if n in NAMES]
)
def test_contract(case: Case, name: str) -> None:
    assert not failures(contracts_for(case, torch.float32)[name](case, "triton", torch.float32))


@pytest.mark.parametrize("lower_bound", [0.05, 0.3])
def test_blocks_of_sixteen_tokens_and_whole_chunks_agree_with_the_reference(lower_bound: float) -> None:
    case = Case(op="hgru2", batch=1, heads=1, tokens=70, gates="wide", lower_bound="edge")
    problem = build(case, torch.float32)
    lowered = torch.full_like(problem.tensors["lower_bound"], lower_bound)  # type: ignore[arg-type]
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        tensors = leaves(problem.to(dtype))
        tensors["lower_bound"] = lowered.to(dtype).requires_grad_()
        results.append(differentiate(problem.to(dtype), tensors, *run(problem.to(dtype), backend, tensors)))
    got, want = results
    assert all(relative_error(x, want[name]) < 64 * torch.finfo(torch.float32).eps for name, x in got.items())


@pytest.mark.parametrize("case", [
    Case(op="hgru2", batch=2, heads=1, tokens=200, lower_bound="small"),
    Case(op="hgru2", batch=1, heads=2, tokens=193, lower_bound="high", state=False, options=(("reverse", True),)),
    packed(Case(op="hgru2", heads=1, lower_bound="mixed"), (0, 130, 1, 0, 65)),
], ids=str)  # fmt: skip
def test_segments_joined_equal_one_scan(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrn2.ops.gated_outer_scan.triton import plan

    whole = evaluate(build(case, torch.float32), "triton")
    cuts = []
    monkeypatch.setattr(plan, "LEAST_SEGMENT", 1)
    monkeypatch.setattr(plan, "processors", lambda device: 64)
    cut = plan.cut
    monkeypatch.setattr(plan, "cut", lambda *arguments: cuts.append(arguments[-1]) or cut(*arguments))
    joined = evaluate(build(case, torch.float32), "triton")
    assert cuts.count(plan.CHUNK) > 2, "segments of one chunk, beside the chunks themselves"
    assert not failures(near(case, "triton", torch.float32, joined, float64_reference(case, torch.float32)))
    assert not failures(near(case, "triton", torch.float32, joined, whole))


def test_rows_of_a_fused_projection_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(op="hgru2", batch=2, heads=1, tokens=9)
    problem = build(case, torch.float32)
    x = [problem.tensors[name] for name in "qfi"]
    fused = torch.cat([y for y in x if y is not None], -1)
    q, f, i = fused.split(16, -1)
    want_o, want_state = ops.hgru2(*x, heads=1, backend="triton")  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", lambda *_: pytest.fail("a projection was copied"))
        o, state = ops.hgru2(q, f, i, heads=1, backend="triton")
    assert different_bits(o, want_o) == 0
    assert state is not None
    assert want_state is not None
    assert different_bits(state, want_state) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slots", [None, (2, 0)])
def test_step_updates_only_its_slots(
    dtype: torch.dtype, slots: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    q, f, i = torch.randn(3, 2, 40, generator=generator)
    lower_bound = torch.rand(40, generator=generator)
    pool = torch.randn(2 if slots is None else 4, 2, 20, 20, generator=generator).to(dtype)
    picked = None if slots is None else torch.tensor(slots)
    options = {"heads": 2, "slots": picked, "input_activation": "silu", "scale": 0.5}
    o, state = ops.hgru2_step(q, f, i, lower_bound, state=pool, backend="triton", **options)
    want_o, want_state = ops.hgru2_step(q, f, i, lower_bound, state=pool.float(), backend="reference", **options)
    assert relative_error(o, want_o) < 1e-6
    assert relative_error(state, want_state) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert state.dtype == dtype
    if slots is not None:
        assert different_bits(state[[1, 3]], pool[[1, 3]]) == 0
        wider = torch.cat((pool.flatten(1), pool.new_zeros(4, 5)), 1)  # another engine's rows have more in them
        apart = wider[:, :800].view(4, 2, 20, 20)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "contiguous", lambda x: pytest.fail("copied") if x.dim() == 4 else x)
            ops.hgru2_step(q, f, i, lower_bound, state=apart, backend="triton", inplace=True, **options)
        assert different_bits(wider[:, :800].view(4, 2, 20, 20), state) == 0
        assert not wider[:, 800:].any()
    assert ops.hgru2_step(q, f, i, lower_bound, state=pool, backend="triton", inplace=True, **options)[1] is pool
    assert different_bits(pool, state) == 0


def test_nothing_is_read_back_from_offsets() -> None:
    """Offsets stay on the device: a plan is made of them without a value being asked for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from hgrn2.ops.gated_outer_scan.triton import plan

    with FakeTensorMode():
        q, offsets = torch.empty(1, 1000, 64), torch.empty(6, dtype=torch.int64)
        made = plan.plan_call(1, 1000, 2, 32, 32, offsets, q)
        assert made.chunks.count == 1000 // plan.CHUNK + 5
        assert made.chunks.owner is not None
        assert made.chunks.owner.shape == (made.chunks.count,)


@pytest.mark.parametrize(("change", "reason"), [
    ({"dtype": torch.float64}, "not float64"), ({"dtype": torch.bfloat16}, "float32 only"),
    ({"width": 512}, "at most 256"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused(change: dict[str, object], reason: str) -> None:
    x = torch.zeros(1, 2, change.get("width", 16), dtype=change.get("dtype", torch.float32))  # type: ignore[call-overload]
    with pytest.raises(UserError, match=reason):
        ops.hgru2(x, x, x, heads=1, backend="triton")


def test_not_a_number_is_not_hidden() -> None:
    x = torch.zeros(1, 3, 16)
    f = x.clone()
    f[0, 1, 3] = torch.nan
    o, state = ops.hgru2(x + 1, f, x + 1, heads=1, backend="triton")
    assert o[0, 2].isnan().any()
    assert state is not None
    assert state.isnan().any()


def test_an_axis_of_one_token_may_claim_any_stride() -> None:
    q, f, i = torch.randn(3, 2, 1, 16, generator=torch.Generator().manual_seed(0))
    want, _ = ops.hgru2(q, f, i, heads=1, backend="triton")
    odd = [x.as_strided((2, 1, 16), (16, 999, 1)) for x in (q, f, i)]
    assert different_bits(ops.hgru2(*odd, heads=1, backend="triton")[0], want) == 0


def test_no_sequences_at_all() -> None:
    x, lower_bound = torch.zeros(0, 5, 16, requires_grad=True), torch.zeros(16, requires_grad=True)
    o, state = ops.hgru2(x, x, x, lower_bound, heads=1, backend="triton")
    assert state is not None
    assert o.shape == (0, 5, 16)
    assert state.shape == (0, 1, 16, 16)
    (d_lower_bound,) = torch.autograd.grad(o.sum() + state.sum(), lower_bound)
    assert torch.equal(d_lower_bound, torch.zeros(16))


def test_a_step_in_double_precision_is_refused() -> None:
    x = torch.zeros(1, 16)
    with pytest.raises(UserError, match="not torch"):
        ops.hgru2_step(x, x, x, heads=1, state=torch.zeros(1, 1, 16, 16, dtype=torch.float64), backend="triton")


def test_turns_of_a_batch_equal_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrn2.ops.gated_outer_scan.triton import calls

    case = Case(op="hgru2", batch=3, heads=1, tokens=66, lower_bound="mixed")
    want = evaluate(build(case, torch.float32), "triton")
    sizes = []
    turns = calls.turns
    monkeypatch.setattr(calls, "SCRATCH", 2 * 2 * 16 * 16 * 4)
    monkeypatch.setattr(calls, "turns", lambda call, states: sizes.append(turns(call, states)) or sizes[-1])
    got = evaluate(build(case, torch.float32), "triton")
    assert [len(turn) for turn in sizes] == [2, 3]
    lower_bound = "d lower_bound"
    assert all(different_bits(x, want[name]) == 0 for name, x in got.items() if name != lower_bound)
    assert relative_error(got[lower_bound], want[lower_bound]) < 1e-6
