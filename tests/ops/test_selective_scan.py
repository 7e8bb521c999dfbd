"""The selective scan: every backend against the loop over tokens, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.doctor import selective as doctor
from hgrn2.errors import UserError
from hgrn2.ops.backend import find
from hgrn2.ops.selective_scan import chunked

GPU = torch.cuda.is_available()  # without one, Triton's interpreter runs the kernels
DEVICE = torch.device("cuda" if GPU else "cpu")


@pytest.fixture
def draw() -> Callable[..., dict[str, Tensor]]:
    """x, step, decay, write, read and state, of one seed."""

    def make(
        batch: int = 2, tokens: int = 11, channels: int = 37, count: int = 5, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        work = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        found = {
            "x": normal(batch, tokens, channels).to(dtype), "step": normal(batch, tokens, channels).exp().to(work),
            "decay": -normal(channels, count).exp().to(work), "write": normal(batch, tokens, count).to(dtype),
            "read": normal(batch, tokens, count).to(dtype), "state": normal(batch, channels, count).to(work),
        }  # fmt: skip
        return {name: tensor.to(DEVICE).requires_grad_() for name, tensor in found.items()}

    return make


def results(tensors: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Output, final state and the gradients of everything."""
    y, final = ops.selective_scan(**tensors, **options)
    assert final is not None
    wave = torch.arange(y.numel(), device=y.device).sin().view_as(y)
    return [y, final, *torch.autograd.grad((y * wave).sum() + final.sin().sum(), list(tensors.values()))]


def near(found: list[Tensor], expected: list[Tensor], roundings: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        error = (mine.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-300)
        assert error <= roundings * torch.finfo(mine.dtype).eps


def test_in_parts_it_is_the_loop(draw: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(draw(), backend="reference")
    near(results(draw(), backend="chunked"), expected, 100)
    monkeypatch.setattr(chunked, "KEPT", 0)
    monkeypatch.setattr(chunked, "PART", 2 * 11 * 5 * 10)
    near(results(draw(), backend="chunked"), expected, 100)


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (4, 3), (5, 16), (10, 2)])
def test_the_kernels_are_the_loop(draw: Callable[..., dict[str, Tensor]], tokens: int, count: int) -> None:
    """Rounds of four tokens that are full or not, a block of channels that is not; strides of a split projection."""
    shape = {"tokens": tokens, "count": count, "channels": 33}
    expected = results(draw(**shape), backend="reference")
    tensors = draw(**shape, dtype=torch.float32)
    fused = torch.cat([tensors[name].detach() for name in ("x", "write", "read")], -1).requires_grad_()
    parts = dict(zip(("x", "write", "read"), fused.split((33, count, count), -1), strict=True))
    near(results(tensors | parts, backend="triton"), expected, 300)


def test_no_state_is_one_of_zeros(draw: Callable[..., dict[str, Tensor]]) -> None:
    tensors = draw(dtype=torch.float32)
    zeros = ops.selective_scan(**tensors | {"state": torch.zeros_like(tensors["state"])}, backend="triton")
    none = ops.selective_scan(**tensors | {"state": None}, backend="triton")  # type: ignore[arg-type]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(none, zeros, strict=True))  # type: ignore[arg-type]


def test_bfloat16_keeps_states_in_float32(draw: Callable[..., dict[str, Tensor]]) -> None:
    """Outputs are rounded once; kernels and parts alike."""
    tensors = draw(dtype=torch.bfloat16)
    double = {name: tensor.detach().double() for name, tensor in tensors.items()}
    expected, final = ops.selective_scan(**double, backend="reference")
    for backend in ("chunked", "triton"):
        y, state = ops.selective_scan(**tensors, backend=backend)
        assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        near([state], [final], 100)
        near([y], [expected], 1)


def test_packed_documents_are_separate_ones(draw: Callable[..., dict[str, Tensor]]) -> None:
    tensors = draw(batch=1)
    ends = torch.tensor([0, 4, 4, 11], device=DEVICE)
    state = torch.randn(3, *tensors["decay"].shape, dtype=torch.float64, device=DEVICE)
    for backend in ("reference", "chunked"):
        y, finals = ops.selective_scan(**tensors | {"state": state}, cu_seqlens=ends, backend=backend)
        for n, (a, b) in enumerate(((0, 4), (4, 4), (4, 11))):
            cut = {name: tensors[name][:, a:b] for name in ("x", "step", "write", "read")}
            if b > a:
                part, final = ops.selective_scan(decay=tensors["decay"], **cut, state=state[n : n + 1])
                near([y[:, a:b], finals[n : n + 1]], [part, final], 100)
            else:
                assert torch.equal(finals[n], state[n])
    with pytest.raises(UserError, match="triton"):
        ops.selective_scan(**draw(batch=1, dtype=torch.float32) | {"state": None}, cu_seqlens=ends, backend="triton")


def test_a_step_is_a_scan_of_one_token(draw: Callable[..., dict[str, Tensor]]) -> None:
    tensors = draw(tokens=1)
    expected, final = ops.selective_scan(**tensors)
    one = {name: tensor if name in ("decay", "state") else tensor[:, 0] for name, tensor in tensors.items()}
    y, state = ops.selective_step(**one)
    near([y, state], [expected[:, 0], final], 100)
    own = tensors["state"].detach().clone()
    _, kept = ops.selective_step(**one | {"state": own}, inplace=True)
    assert kept.data_ptr() == own.data_ptr()
    near([own], [final], 100)


def test_it_is_registered_soundly(draw: Callable[..., dict[str, Tensor]]) -> None:
    tensors = draw(batch=1, dtype=torch.float32, tokens=2, channels=3, count=2)
    torch.library.opcheck(torch.ops.hgrn2.selective_scan.default, (*tensors.values(), "triton"))


@pytest.mark.parametrize("dtype", doctor.DTYPES)
def test_doctor_finds_nothing_and_would(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(one.error <= one.allowed for one in doctor.findings(DEVICE, dtype, "chunked"))
    right = chunked.forward
    wrong = staticmethod(lambda x, step, *rest: right(x, 1.02 * step, *rest))
    monkeypatch.setattr(type(find("selective_scan", "chunked")), "forward", wrong)
    assert any(one.error > one.allowed for one in doctor.findings(DEVICE, dtype, "chunked"))


def test_what_does_not_fit_is_refused(draw: Callable[..., dict[str, Tensor]]) -> None:
    tensors = draw(dtype=torch.float32)
    for name, wrong, said in (
        ("write", tensors["read"][:, :3], r"x and step must be \[B,T,E\], decay \[E,N\], write and read \[B,T,N\]"),
        ("step", tensors["step"].bfloat16(), "step must be torch.float32 beside x in torch.float32"),
        ("state", tensors["state"][:1], r"state must be \[2, 37, 5\]; got \[1, 37, 5\]"),
    ):
        with pytest.raises(UserError, match=said):
            ops.selective_scan(**tensors | {name: wrong})
    with pytest.raises(UserError, match="triton holds states of at most 32 numbers per channel, not 33"):
        ops.selective_scan(**draw(dtype=torch.float32, count=33), backend="triton")
    assert "selective_scan on cpu float64 runs on chunked" in ops.explain(
        "selective_scan", *(tensor.cpu() for tensor in list(draw().values())[:5])
    )
