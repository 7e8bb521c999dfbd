"""The CUDA kernels of small heads on an emulated block of threads: every number they must get right, small cases."""

from dataclasses import replace

import pytest
import torch

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.ops import backend as backends
from hgrn2.ops.cuda import plan, small, support
from hgrn2.ops.hgru2 import backends as registry
from hgrn2.testing import contracts, emulator
from hgrn2.testing.cases import Case, packed
from hgrn2.testing.compare import failures

pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="the emulator needs g++")
CASE = Case(op="hgru2", batch=2, tokens=19, heads=5, key=4, value=4, lower_bound="small")
DOCUMENTS = (0, 1, 17, 0, 8, 16, 0)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "launch", emulator.launch)
    monkeypatch.setattr("hgrn2.ops.cuda.support.supports", lambda *_: (True, "emulated"))


def sized(n: int, **changes: object) -> Case:
    return replace(CASE, key=n, value=n, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case",
    [
        *(sized(n) for n in (1, 2, 3, 5, 8, 16)),
        *(replace(CASE, tokens=tokens, state=False) for tokens in (0, 1, 8, 9)),
        *(
            replace(CASE, gates=gates, lower_bound=lower_bound)
            for gates in ("wide", "infinite")
            for lower_bound in ("none", "high")
        ),
        replace(CASE, options=(("input_activation", "silu"), ("output_activation", "sigmoid"), ("scale", 0.3))),
        replace(CASE, heads=40, options=(("reverse", True),)),
        packed(replace(CASE, heads=3), DOCUMENTS),
        packed(sized(16, heads=3, options=(("reverse", True),), lower_bound="mixed"), DOCUMENTS),
    ],
    ids=str,
)
def test_matches_the_token_loop(case: Case, dtype: torch.dtype) -> None:
    assert not failures(contracts.matches_reference(case, "cuda", dtype))


@pytest.mark.parametrize("case", [CASE, sized(3, state=False), packed(sized(8), DOCUMENTS)], ids=str)
@pytest.mark.parametrize("name", ["split_equals_whole", "reverse_equals_flipped"])
def test_structure(name: str, case: Case) -> None:
    dtype = torch.float32
    if name in contracts.contracts_for(case, dtype):
        assert not failures(contracts.contracts_for(case, dtype)[name](case, "cuda", dtype))


def test_views_of_one_product_are_taken_as_they_are() -> None:
    wide = torch.randn(2, 20, 3 * 32, generator=torch.Generator().manual_seed(0))
    q, f, i = wide.split(32, -1)
    whole = ops.hgru2(q.contiguous(), f.contiguous(), i.contiguous(), heads=4, backend="cuda")[0]
    assert torch.equal(ops.hgru2(q, f, i, heads=4, backend="cuda")[0], whole)


def test_nan_is_not_hidden_and_stays_in_its_head() -> None:
    q, f, i = torch.randn(3, 1, 10, 16, generator=torch.Generator().manual_seed(0))
    f[0, 4, 5] = torch.nan
    o, _ = ops.hgru2(q, f, i, heads=4, backend="cuda")
    assert o[0, 4:, 4:8].isnan().all()
    assert not o[0, :4].isnan().any()
    assert not o[0, :, 8:].isnan().any()


def test_offsets_that_do_not_fit() -> None:
    """Refused on the CPU; those on a device, which are not looked at, never lead out of the tensors."""
    q, f, i = torch.randn(3, 1, 10, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError):
        ops.hgru2(q, f, i, heads=2, cu_seqlens=torch.tensor([0, 12, 10]), backend="cuda")
    assert plan.fitting(torch.tensor([3, 40, -7, 5]), 10).tolist() == [0, 10, 10, 10]


def test_few_long_sequences_are_left_to_chunks() -> None:
    """On a GPU of 132 multiprocessors, as the rows in results/small_heads.jsonl have it."""
    assert support.too_few(32, 2048, 16, 8, 132)  # 1.57 ms against 1.09
    assert support.too_few(32, 2048, 8, 16, 132)  # 2.48 against 0.63
    assert not support.too_few(32, 2048, 64, 2, 132)  # 1.25 against 4.2
    assert not support.too_few(256, 2048, 8, 16, 132)  # 3.19 against 4.4
    assert not support.too_few(4, 32, 8, 16, 132)  # short ones are always scanned sequentially


def test_auto_leaves_them_and_a_name_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name the sequential scan is what runs, also where it is slow: a benchmark must not time another kernel."""
    serving = {"cuda", "triton"}
    monkeypatch.setattr(backends, "_support", lambda _, name, *__: (name in serving, name))
    monkeypatch.setattr(registry, "_processors", lambda _: 132)
    place, few, many = torch.device("cuda"), (32, 2048, 16), (256, 2048, 16)

    def chosen(batch: tuple[int, int, int], name: str = "auto") -> str:
        return backends.choose(place, name, keys=8, values=8, batch=batch).backend

    assert chosen(few) == "triton"
    assert chosen(many) == chosen(few, "cuda") == "cuda"
    serving.discard("triton")
    assert chosen(few) == "cuda"
