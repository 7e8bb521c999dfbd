"""The element-wise scan on Triton kernels: in Triton's interpreter on any machine, and on a GPU where there is one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.ops.gated_scan import triton as scan
from hgrn2.ops.gated_scan.triton.settings import GRAIN, Cut, Settings, cut, settings_of
from hgrn2.testing import contracts
from hgrn2.testing.cases import LOGITS, Case, build, packed
from hgrn2.testing.compare import different_bits, failures, relative_error
from hgrn2.testing.evaluation import evaluate
from hgrn2.testing.grids import ACCURACY, DOCUMENTS, STRUCTURE
from hgrn2.testing.large import matches_chunked

GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not GPU, reason="no CUDA device")
interpreted = pytest.mark.skipif(GPU, reason="the kernels run on the GPU here, not in the interpreter")
SMALL = Case(op="gated_scan", tokens=35, batch=1, heads=1, key=19)
SHORT = replace(SMALL, tokens=13, key=3)
LENGTHS = (0, 1, 9, 0, 3, 17, 0)


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 8 tokens and segments of 16, so that a few tokens meet every boundary there is."""
    monkeypatch.setattr(scan, "settings_of", lambda dtype: Settings(rows=8, width=64 if dtype.is_complex else 32))
    monkeypatch.setattr(scan, "cut", lambda settings, batch, tokens, reals, processors: Cut(-(-tokens // 16), 16))


BACKWARDS = (("reverse", True),)
KINDS = (
    replace(SMALL, batch=2),
    replace(SMALL, options=BACKWARDS, state=False),
    packed(replace(SMALL, state=False), LENGTHS),
    packed(replace(SMALL, options=BACKWARDS), LENGTHS),
    replace(SMALL, options=BACKWARDS, complex=True),
    packed(replace(SMALL, complex=True), LENGTHS),
)


@interpreted
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_matches_reference(case: Case, short_pieces: None) -> None:
    assert not failures(contracts.matches_reference(case, "triton", torch.float32))


@interpreted
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("gates", ["floor", "ceiling", "extremes", "infinite", "steep"])
def test_every_gate(gates: str, complex_: bool, short_pieces: None) -> None:
    case = replace(SHORT, tokens=9, gates=gates, complex=complex_)
    assert not failures(contracts.matches_reference(case, "triton", torch.float32))


@interpreted
@pytest.mark.parametrize("case", [replace(SHORT, tokens=70), replace(SHORT, tokens=66, complex=True)], ids=str)
def test_settings_that_gpus_get(case: Case) -> None:
    assert not failures(contracts.matches_reference(case, "triton", torch.float32))


@interpreted
@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 16])
def test_lengths(tokens: int, short_pieces: None) -> None:
    dense = replace(SHORT, tokens=tokens)
    for case in (dense, packed(dense, (0, tokens, 0))):
        assert not failures(contracts.matches_reference(case, "triton", torch.float32))


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_dtypes(dtype: torch.dtype, short_pieces: None) -> None:
    case = packed(SHORT, (7, 0, 6))
    assert not failures(contracts.matches_reference(case, "triton", dtype))
    if dtype == torch.float16:  # the interpreter cuts float32 off where it makes bfloat16 of it
        assert not failures(contracts.rounds_once(case, "triton", dtype))


DENSE, PACKED = replace(SHORT, tokens=18), packed(SHORT, (0, 2, 9, 0))
STRUCTURAL = [(DENSE, name) for name in contracts.contracts_for(DENSE, torch.float32)] + [
    (PACKED, name) for name in ("writes_all_its_memory", "packed_equals_separate", "documents_do_not_mix")
]


@interpreted
@pytest.mark.parametrize(("case", "name"), STRUCTURAL, ids=str)
def test_contracts(case: Case, name: str, short_pieces: None) -> None:
    contract = contracts.contracts_for(case, torch.float32)[name]
    cuts = {"cuts": (0, 5, 8, 17)} if name == "split_equals_whole" else {}
    assert not failures(contract(case, "triton", torch.float32, **cuts))


def in_double(case: Case) -> None:
    """The kernels in double precision, whether or not `choose` offers them for it."""
    operator = replace(build(case, torch.float64).operator, run=_kernels)
    assert not failures(contracts.matches_reference(case, "triton", torch.float64, operator))


def _kernels(
    *, x: Tensor, f: Tensor, state: Tensor | None, cu_seqlens: Tensor | None = None, reverse: bool = False, backend: str
) -> tuple[Tensor, Tensor]:
    h, final, _ = torch.ops.hgrn2.gated_scan(x, f, state, cu_seqlens, reverse, backend)
    return h, final


@interpreted
@pytest.mark.parametrize("complex_", [False, True])
def test_double_precision(complex_: bool, short_pieces: None) -> None:
    in_double(replace(SHORT, tokens=18, complex=complex_))


@interpreted
def test_gates_may_have_another_dtype_than_inputs(short_pieces: None) -> None:
    x, f = torch.randn(1, 9, 3).bfloat16().requires_grad_(), torch.rand(1, 9, 3).requires_grad_()
    (h, final), (want, _) = (ops.gated_scan(x, f, backend=name) for name in ("triton", "chunked"))
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert relative_error(h, want) < 4 * torch.finfo(torch.bfloat16).eps
    assert [g.dtype for g in torch.autograd.grad(h.sum(), (x, f))] == [torch.bfloat16, torch.float32]


@interpreted
def test_offsets_that_do_not_rise_are_refused_where_looking_is_free(short_pieces: None) -> None:
    x = torch.rand(1, 9, 3)
    with pytest.raises(UserError, match="must rise"):
        ops.gated_scan(x, x, cu_seqlens=torch.tensor([0, 7, 5, 9]), backend="triton")


@interpreted
def test_offsets_outside_write_nowhere() -> None:
    from hgrn2.ops.gated_scan.triton.rows import mark_documents

    room = torch.full((2, 30), -1, dtype=torch.int32)
    first, last = room[0, 10:20], room[1, 10:20]
    offsets = torch.tensor([-4, 3, 3, 25, 2, 10, 10])
    mark_documents[(1,)](offsets, first, last, 6, 10, 0, 1, BLOCK=128)
    assert first.tolist() == [-1, -1, 4, -1, -1, -1, -1, -1, -1, -1]
    assert last.tolist() == [-1] * 9 + [4]
    first.fill_(-1)
    last.fill_(-1)
    assert (room == -1).all()


@interpreted
@pytest.mark.parametrize("case", [packed(replace(SHORT, complex=True), (2, 0, 3))], ids=str)
def test_opcheck(case: Case, short_pieces: None) -> None:
    problem = build(case, torch.float32)
    tensors = [None if x is None else x.clone().requires_grad_() for x in problem.tensors.values()]
    given = (*tensors, problem.cu_seqlens, False, "triton")
    torch.library.opcheck(torch.ops.hgrn2.gated_scan.default, given, test_utils=("test_schema", "test_faketensor"))
    x, f, state = problem.tensors.values()
    carries = torch.ops.hgrn2.gated_scan(*given)[2].detach()
    given = (x, f, carries, state, problem.cu_seqlens, problem.grad_output, problem.grad_state, False, "triton")
    torch.library.opcheck(
        torch.ops.hgrn2.gated_scan_backward.default, given, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("tokens", [1, 64, 65, 1000, 100_003])
@pytest.mark.parametrize(("batch", "reals"), [(1, 1), (1, 2048), (16, 2048), (4096, 64)])
def test_segments_cover_the_sequence_whatever_the_dtype(batch: int, reals: int, tokens: int) -> None:
    found = {cut(settings_of(dtype), batch, tokens, reals, 132) for dtype in (torch.bfloat16, torch.float32)}
    (pieces,) = found
    assert pieces.length % GRAIN == 0
    assert (pieces.segments - 1) * pieces.length < tokens <= pieces.segments * pieces.length
    assert pieces.segments == 1 or pieces.length >= 2 * GRAIN


def test_few_channels_are_cut_and_many_are_not() -> None:
    settings = settings_of(torch.bfloat16)
    assert cut(settings, 1, 32_768, 2048, 132).segments > 16
    assert cut(settings, 16, 2048, 2048, 132).segments == 1


@pytest.mark.parametrize(
    "nonsense", [{"rows": 12}, {"rows": 64}, {"width": 48}, {"width": 16}, {"enough": 0.0}, {"fill": 0}], ids=str
)
def test_settings_refuse_nonsense(nonsense: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Settings(**({"rows": 8, "width": 32} | nonsense))


# On a GPU.

CUDA = [replace(case, device="cuda") for case in ACCURACY if case.op == "gated_scan"]
CUDA_STRUCTURE = [replace(case, device="cuda") for case in STRUCTURE if case.op == "gated_scan"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CUDA, ids=str)
def test_gpu_matches_reference(case: Case, dtype: torch.dtype) -> None:
    if case.complex and torch.finfo(dtype).bits < 32:
        pytest.skip("PyTorch has no narrow complex numbers to speak of")
    assert not failures(contracts.matches_reference(case, "triton", dtype))
    if torch.finfo(dtype).bits < 32:
        assert not failures(contracts.rounds_once(case, "triton", dtype))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", CUDA_STRUCTURE, ids=str)
def test_gpu_double_precision(case: Case) -> None:
    in_double(case)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in CUDA_STRUCTURE for name in contracts.contracts_for(case, torch.float32)],
    ids=str,
)
def test_gpu_contracts(case: Case, name: str) -> None:
    assert not failures(contracts.contracts_for(case, torch.float32)[name](case, "triton", torch.float32))


def near_double(case: Case, dtype: torch.dtype) -> None:
    """For sizes at which the token loop takes minutes."""
    assert not failures(matches_chunked(build(case, dtype), "triton"))


BIG: dict[str, Callable[[Case], Case]] = {
    "long and narrow": lambda case: replace(case, batch=1, tokens=100_003, key=3),
    "long": lambda case: replace(case, batch=1, tokens=8191, key=1024),
    "one channel of one sequence": lambda case: replace(case, batch=1, tokens=65, key=1),
    "many sequences": lambda case: replace(case, batch=4096, tokens=65, key=2),
    "unequal documents": lambda case: packed(replace(case, key=128), (1, 10_000, 0, 2, 777, 1, 64, 5000)),
    "many documents": lambda case: packed(replace(case, key=64), (3, 0, 1, 17) * 1000),
}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("size", BIG)
def test_gpu_sizes(size: str, complex_: bool, dtype: torch.dtype) -> None:
    if complex_ and dtype == torch.bfloat16:
        pytest.skip("PyTorch has no complex bfloat16")
    near_double(BIG[size](Case(op="gated_scan", heads=1, complex=complex_, device="cuda")), dtype)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("gates", LOGITS)
def test_gpu_gates_in_long_segments(gates: str) -> None:
    near_double(Case(op="gated_scan", batch=1, tokens=4099, key=70, gates=gates, device="cuda"), torch.float32)


def compiled() -> int:
    """How many variants of the kernels this process has compiled."""
    from hgrn2.ops.gated_scan.triton import backward_kernels, forward_kernels, rows

    kernels = (
        forward_kernels.scan, forward_kernels.summarise, backward_kernels.scan_back, backward_kernels.summarise_back,
        rows.mark_documents,
    )  # fmt: skip
    return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())


@pytest.mark.gpu
@needs_gpu
def test_gpu_packed_lengths_neither_recompile_nor_wait() -> None:
    def call(lengths: tuple[int, ...], reverse: bool) -> Tensor:
        offsets = torch.tensor((0, *lengths), device="cuda").cumsum(0)
        x, f = torch.rand(2, 1, sum(lengths), 64, device="cuda").unbind()
        x.requires_grad_()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            h, _ = ops.gated_scan(x, f, cu_seqlens=offsets, reverse=reverse, backend="triton")
            return torch.autograd.grad(h.sum(), x)[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    call((100, 0, 28, 300), False)
    before = compiled()
    for lengths in ((1, 2, 3, 300), (5000, 1), (1,) * 500, (10_000, 16)):
        for reverse in (False, True):
            assert call(lengths, reverse).isfinite().all()
    assert compiled() == before


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_gpu_second_device() -> None:
    case = replace(SMALL, tokens=300)
    one, two = (evaluate(build(replace(case, device=f"cuda:{n}"), torch.float32), "triton") for n in (0, 1))
    assert {name: different_bits(x.cpu(), two[name].cpu()) for name, x in one.items()} == dict.fromkeys(one, 0)


@pytest.mark.gpu
@needs_gpu
def test_gpu_compiles_as_one_graph() -> None:
    x, f = torch.rand(2, 2, 300, 64, device="cuda").unbind()
    traced = torch.compile(ops.gated_scan, fullgraph=True)
    for name in ("auto", "triton"):
        assert different_bits(traced(x, f, backend=name)[0], ops.gated_scan(x, f, backend=name)[0]) == 0


@pytest.mark.gpu
@needs_gpu
def test_gpu_documents_of_the_grid_in_narrow_dtypes() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = packed(Case(op="gated_scan", heads=1, key=2048, device="cuda"), DOCUMENTS)
        assert not failures(contracts.matches_reference(case, "triton", dtype))
        assert not failures(contracts.rounds_once(case, "triton", dtype))
