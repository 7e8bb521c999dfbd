"""The CUDA kernels of hgru2 on an emulated block of threads: every number they must get right, small cases."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.ops.cuda import call, plan
from hgrn2.testing import emulator

pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="the emulator needs g++")
NAMES = ("q", "f", "i", "lower_bound", "state")
WORST = 4e-3  # bfloat16 operands lose 2e-3 to 3e-3 (docs/numerics.md); a wrong index loses everything


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch, emulated: None) -> None:
    """Asynchronous copies arrive at once."""
    monkeypatch.setattr(call, "launch", emulator.launch_early)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(call, "launch", emulator.launch)
    monkeypatch.setattr("hgrn2.ops.cuda.support.supports", lambda *_: (True, "emulated"))
    plan._dense.cache_clear()
    yield
    plan._dense.cache_clear()


def inputs(
    tokens: int, heads: int, size: int, batch: int = 1, spread: float = 1.0, shift: float = 0.0,
    lower_bound: float = 0.1,
    documents: int = 0,
) -> list[Tensor]:  # fmt: skip
    """q, f, i in bfloat16, bound and state in float32."""
    random = torch.Generator().manual_seed(tokens + size)
    q, f, i = (torch.randn(batch, tokens, heads * size, generator=random) for _ in range(3))
    state = torch.randn(documents or batch, heads, size, size, generator=random)
    return [
        q.bfloat16(),
        (f * spread + shift).bfloat16(),
        i.bfloat16(),
        torch.full((heads * size,), lower_bound),
        state,
    ]


def results(
    tensors: list[Tensor], heads: int, backend: str, dtype: torch.dtype | None, **options: object
) -> dict[str, Tensor]:
    """o, the final state and every gradient."""
    leaves = [x.to(dtype or x.dtype).detach().requires_grad_() for x in tensors]
    q, f, i, lower_bound, state = leaves
    o, final = ops.hgru2(q, f, i, lower_bound, heads=heads, state=state, backend=backend, **options)  # type: ignore[arg-type]
    assert final is not None
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=random).bfloat16().to(x.dtype) for x in (o, final)]
    gradients = torch.autograd.grad([o, final], leaves, weights)
    return dict(zip(("o", "final", *NAMES), (o, final, *gradients), strict=True))


def check(tensors: list[Tensor], heads: int, **options: object) -> None:
    got = results(tensors, heads, "cuda", None, **options)
    want = results(tensors, heads, "chunked", torch.float64, **options)
    for name, x in got.items():
        assert not x.isnan().any(), name
        error = (x.double() - want[name]).norm() / want[name].norm().clamp(min=1e-20)
        assert error < WORST, f"{name}: {error:.1e}"


@pytest.mark.parametrize(("size", "heads"), [(128, 1), (64, 2)])
@pytest.mark.parametrize("tokens", [1, 7, 64, 65])
def test_lengths(size: int, heads: int, tokens: int) -> None:
    check(inputs(tokens, heads, size), heads)


@pytest.mark.parametrize(
    ("spread", "shift", "lower_bound"),
    [(3.0, 0.0, 0.0), (1.0, -12.0, 0.0), (1.0, -40.0, 0.5), (30.0, 0.0, 1e-3), (1.0, 40.0, 0.3)],
)
def test_gates(spread: float, shift: float, lower_bound: float) -> None:
    check(inputs(70, 2, 64, spread=spread, shift=shift, lower_bound=lower_bound), 2)


def test_gates_of_exactly_zero_and_one() -> None:
    tensors = inputs(66, 2, 64, lower_bound=0.0)
    tensors[1] = tensors[1].sign() * torch.inf
    check(tensors, 2)


@pytest.mark.parametrize("output", ["none", "sigmoid"])
def test_options(output: str) -> None:
    check(inputs(70, 2, 64, batch=2), 2, reverse=True, scale=0.3, input_activation="silu", output_activation=output)


def test_an_odd_head_of_64_gets_a_companion() -> None:
    check(inputs(9, 1, 64), 1)


@pytest.mark.parametrize("reverse", [False, True])
def test_segments_are_joined(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "segment_length", lambda *_: 64)
    check(inputs(150, 2, 64, batch=2), 2, reverse=reverse)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(("size", "tokens"), [(64, 470), (128, 512)])
def test_copies_that_arrive_at_once_overwrite_nothing_in_use(
    size: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "segment_length", lambda *_: 256)  # of four chunks: two are worked on, two on their way
    check(inputs(tokens, 1, size, shift=6.0), 1)  # gates that forget little, or the last chunks would not matter


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_documents(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "segment_length", lambda *_: 64)
    cu_seqlens = torch.tensor([0, 0, 5, 71, 71, 140], dtype=torch.int32)
    check(inputs(140, 2, 64, documents=5), 2, cu_seqlens=cu_seqlens, reverse=reverse)


def test_views_of_one_product_are_taken_as_they_are() -> None:
    wide = torch.randn(2, 20, 3 * 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    q, f, i = wide.split(128, -1)
    whole = ops.hgru2(q.contiguous(), f.contiguous(), i.contiguous(), heads=1, backend="cuda")[0]
    assert torch.equal(ops.hgru2(q, f, i, heads=1, backend="cuda")[0], whole)


def test_later_tokens_change_no_earlier_output() -> None:
    q, f, i, lower_bound, state = inputs(80, 1, 128)
    before = ops.hgru2(q, f, i, lower_bound, heads=1, state=state, backend="cuda")[0]
    for x in (q, f, i):
        x[:, 37:] += 1
    after = ops.hgru2(q, f, i, lower_bound, heads=1, state=state, backend="cuda")[0]
    assert torch.equal(before[:, :37], after[:, :37])
    assert not torch.equal(before[:, 37:], after[:, 37:])


def test_nan_is_not_hidden() -> None:
    q, f, i, lower_bound, _ = inputs(10, 2, 64)
    f[0, 4, 3] = torch.nan
    o, _ = ops.hgru2(q, f, i, lower_bound, heads=2, backend="cuda")
    assert o[0, 4:, :64].isnan().all()
    assert not o[0, :4].isnan().any()


@pytest.mark.parametrize("used", ["o", "final"])
def test_gradients_of_one_result_alone(used: str) -> None:
    tensors = inputs(70, 2, 64)
    found = []
    for backend, dtype in (("cuda", None), ("chunked", torch.float64)):
        q, f, i, lower_bound, state = leaves = [x.to(dtype or x.dtype).detach().requires_grad_() for x in tensors]
        o, final = ops.hgru2(q, f, i, lower_bound, heads=2, state=state, backend=backend)
        assert final is not None
        result = {"o": o, "final": final}[used]
        weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(result.dtype)
        found.append(torch.autograd.grad(result, leaves, weight, allow_unused=True))
    for name, got, want in zip(NAMES, *found, strict=True):
        assert (got.double() - want).norm() <= WORST * want.norm(), name


def test_without_an_initial_state_none_has_a_gradient() -> None:
    q, f, i, lower_bound, _ = (x.requires_grad_() for x in inputs(20, 2, 64))
    o, _ = ops.hgru2(q, f, i, lower_bound, heads=2, backend="cuda")
    assert all(x is not None and not x.isnan().any() for x in torch.autograd.grad(o.sum(), (q, f, i, lower_bound)))
