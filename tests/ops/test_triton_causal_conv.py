"""The short convolution on Triton kernels: in Triton's interpreter on any machine, and on a GPU where there is one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.ops.causal_conv import registration
from hgrn2.ops.causal_conv import triton as conv
from hgrn2.testing import contracts
from hgrn2.testing.cases import Case, Operator, build, packed
from hgrn2.testing.compare import failures
from hgrn2.testing.grids import ACCURACY, STRUCTURE
from hgrn2.testing.large import matches_chunked

GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not GPU, reason="no CUDA device")
interpreted = pytest.mark.skipif(GPU, reason="the kernels run on the GPU here, not in the interpreter")
SMALL = Case(op="causal_conv", tokens=18, batch=2, heads=1, key=5)
LENGTHS = (0, 1, 2, 0, 3, 9, 0)


def _kernels(
    *, x: Tensor, weight: Tensor, state: Tensor | None, cu_seqlens: Tensor | None = None, backend: str
) -> tuple[Tensor, Tensor]:
    return registration.forward(x, weight, state, cu_seqlens, backend)


def kernels(case: Case) -> Operator:
    """The operator called past `choose`, so that double precision is served too."""
    return replace(build(case, torch.float32).operator, run=_kernels)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter 8 tokens per program, so that a few tokens meet every boundary."""
    if not GPU:
        monkeypatch.setattr(conv, "rows_for", lambda taps: 8)


KINDS = (
    SMALL,
    replace(SMALL, batch=1, tokens=5, state=False, key=70),
    replace(SMALL, batch=1, tokens=5, taps=7),
    replace(SMALL, batch=1, tokens=2),
    replace(SMALL, tokens=0),
    replace(SMALL, tokens=3, taps=1),
    packed(SMALL, LENGTHS),
    packed(replace(SMALL, taps=2, state=False), LENGTHS),
)


@interpreted
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_matches_reference(case: Case) -> None:
    assert not failures(contracts.matches_reference(case, "triton", torch.float32, kernels(case)))


@interpreted
@pytest.mark.parametrize("case", [replace(SMALL, tokens=9), packed(SMALL, LENGTHS)], ids=str)
def test_other_dtypes(case: Case) -> None:
    assert not failures(contracts.matches_reference(case, "triton", torch.float64, kernels(case)))
    assert not failures(contracts.rounds_once(case, "triton", torch.float16, kernels(case)))


SHORT = replace(SMALL, batch=1, tokens=9)
STRUCTURAL = [(SHORT, name) for name in contracts.contracts_for(SHORT, torch.float32) if name != "matches_reference"]
STRUCTURAL += [(packed(SHORT, LENGTHS), name) for name in ("packed_equals_separate", "documents_do_not_mix")]


@interpreted
@pytest.mark.parametrize(("case", "name"), STRUCTURAL, ids=str)
def test_contracts(case: Case, name: str) -> None:
    assert not failures(
        contracts.contracts_for(case, torch.float32)[name](case, "triton", torch.float32, kernels(case))
    )


@interpreted
def test_opcheck() -> None:
    case = packed(SHORT, (2, 0, 3))
    problem = build(case, torch.float16)
    tensors = [None if x is None else x.clone().requires_grad_() for x in problem.tensors.values()]
    checks = ("test_schema", "test_faketensor")
    given = (*tensors, problem.cu_seqlens, "triton")
    torch.library.opcheck(torch.ops.hgrn2.causal_conv.default, given, test_utils=checks)
    given = (*problem.tensors.values(), problem.cu_seqlens, problem.grad_output, problem.grad_state, "triton")
    torch.library.opcheck(torch.ops.hgrn2.causal_conv_backward.default, given, test_utils=checks)


# On a GPU.

CUDA = [replace(case, device="cuda") for case in (*ACCURACY, *STRUCTURE) if case.op == "causal_conv"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CUDA, ids=str)
def test_gpu_matches_reference(case: Case, dtype: torch.dtype) -> None:
    assert not failures(contracts.matches_reference(case, "triton", dtype, kernels(case)))
    if torch.finfo(dtype).bits < 32:
        assert not failures(contracts.rounds_once(case, "triton", dtype, kernels(case)))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", [case for case in CUDA if case.tokens > 5 and not case.lengths], ids=str)
def test_gpu_contracts(case: Case) -> None:
    for contract in contracts.contracts_for(case, torch.float32).values():
        assert not failures(contract(case, "triton", torch.float32, kernels(case)))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(), (1, 10_000, 0, 2, 777), (3, 0, 1, 17) * 1000], ids=("dense", "long", "many"))
def test_gpu_sizes(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    case = Case(op="causal_conv", tokens=8191, heads=1, key=200, device="cuda")
    problem = build(packed(case, lengths) if lengths else case, dtype)
    assert not failures(matches_chunked(problem, "triton"))


@pytest.mark.gpu
@needs_gpu
def test_gpu_packed_calls_do_not_wait() -> None:
    offsets = torch.tensor([0, 100, 100, 128], device="cuda")
    x, weight = (torch.rand(shape, device="cuda").requires_grad_() for shape in ((1, 128, 64), (64, 4)))
    state = torch.rand(3, 3, 64, device="cuda").requires_grad_()

    def call() -> tuple[Tensor, ...]:
        y, final = ops.causal_conv(x, weight, state=state, cu_seqlens=offsets, backend="triton")
        assert final is not None
        return torch.autograd.grad(y.sum() + final.sum(), (x, weight, state))

    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
