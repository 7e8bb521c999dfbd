"""The Triton kernels of hgru2 on a real GPU: what the interpreter cannot show, beside test_gpu_contracts.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.testing.cases import Case, build
from hgrn2.testing.compare import different_bits, failures, relative_error
from hgrn2.testing.contracts import matches_reference
from hgrn2.testing.evaluation import differentiate, evaluate, leaves, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def drawn(batch: int, tokens: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randn(3, batch, tokens, width, generator=generator, device="cuda", dtype=dtype)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Inside, an operation that makes the host wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("lower_bound", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_every_split_of_scores_in_every_size(size: int, lower_bound: float) -> None:
    case = Case(op="hgru2", batch=1, heads=2, tokens=150, key=size, value=size, gates="wide", lower_bound="edge")
    case = replace(case, device="cuda")
    problem = build(case, torch.bfloat16)
    lowered = torch.full_like(problem.tensors["lower_bound"], lower_bound)  # type: ignore[arg-type]
    results = []
    for dtype, backend in ((torch.bfloat16, "triton"), (torch.float64, "chunked")):
        here = problem.to(dtype)
        tensors = leaves(here)
        tensors["lower_bound"] = lowered.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        results.append(differentiate(here, tensors, *run(here, backend, tensors)))
    got, want = results
    errors = {name: relative_error(x, want[name]) for name, x in got.items()}
    assert max(errors.values()) < torch.finfo(torch.bfloat16).eps, errors


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_float32_keeps_its_precision(size: int) -> None:
    case = Case(op="hgru2", batch=1, heads=1, tokens=130, key=size, value=size, lower_bound="high", device="cuda")
    assert not failures(matches_reference(case, "triton", torch.float32))


@pytest.mark.parametrize("op", ["hgru2", "gated_outer_scan"])
def test_other_lengths_compile_nothing_and_make_nobody_wait(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.jit import JITFunction

    q, f, i = drawn(1, 1000, 2 * 32)

    def once(*lengths: int) -> None:
        cu = torch.tensor((0, *lengths), device="cuda").cumsum(0)
        x = [y[:, : sum(lengths)].requires_grad_() for y in (q, f, i)]
        with without_waiting():
            if op == "hgru2":
                o, state = ops.hgru2(*x, heads=2, cu_seqlens=cu, backend="triton")
            else:
                heads = [y.unflatten(-1, (2, -1)) for y in x]
                gates = torch.nn.functional.logsigmoid(heads[1])
                o, state = ops.gated_outer_scan(heads[0], heads[1], heads[2], gates, cu_seqlens=cu, backend="triton")
            assert state is not None
            torch.autograd.grad(o.float().sum() + state.sum(), x)

    once(16, 200, 0, 3)
    once(900, 63)  # enough chunks to be scanned in segments: the other of two forms
    compiled = []
    build_kernel = JITFunction._do_compile

    def counted(self: JITFunction, *arguments: object, **options: object) -> object:
        compiled.append(self)
        return build_kernel(self, *arguments, **options)

    monkeypatch.setattr(JITFunction, "_do_compile", counted)
    for lengths in ((1,), (64,), (500, 1, 1), (128, 0, 0, 16, 7), (997,)):
        once(*lengths)
    assert not compiled


def test_segments_of_a_long_sequence_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrn2.ops.gated_outer_scan.triton import plan

    case = Case(op="hgru2", batch=1, heads=1, tokens=5000, key=64, value=64, lower_bound="mixed", device="cuda")
    cut = evaluate(build(case, torch.float32), "triton")
    monkeypatch.setattr(plan, "LEAST_SEGMENT", 1000)
    whole = evaluate(build(case, torch.float32), "triton")
    assert any(different_bits(x, whole[name]) for name, x in cut.items())
    assert all(relative_error(x, whole[name]) < 64 * torch.finfo(torch.float32).eps for name, x in cut.items())


def test_scratch_of_a_large_batch_is_bounded() -> None:
    q, f, i = drawn(16, 2048, 2048)
    lower_bound = torch.rand(2048, device="cuda")
    x = tuple(y.requires_grad_() for y in (q, f, i))
    o, _ = ops.hgru2(x[0], x[1], x[2], lower_bound, heads=16, backend="triton")
    grad = torch.randn_like(o)
    del _
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grads = torch.autograd.grad(o, x, grad)
    torch.cuda.synchronize()
    kept = sum(g.numel() * g.element_size() for g in grads)
    assert torch.cuda.max_memory_allocated() - before - kept < 400e6


def test_slices_of_a_fused_projection_and_float16() -> None:
    fused = drawn(2, 100, 64, torch.float16).movedim(0, 2).flatten(2)
    q, f, i = fused.split(64, -1)
    apart = [x.contiguous() for x in (q, f, i)]
    o, _ = ops.hgru2(q, f, i, heads=2, backend="triton")
    want, _ = ops.hgru2(*apart, heads=2, backend="triton")
    assert different_bits(o, want) == 0


def test_many_heads_and_one_head() -> None:
    for batch, heads in ((64, 64), (1, 1)):
        case = Case(op="hgru2", batch=batch, heads=heads, tokens=65, lower_bound="small", device="cuda")
        got, want = (evaluate(build(case, torch.float32), backend) for backend in ("triton", "chunked"))
        assert max(relative_error(x, want[name]) for name, x in got.items()) < 1e-5


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_step(state_dtype: torch.dtype) -> None:
    q, f, i = drawn(1, 8, 256)[:, 0]
    lower_bound = torch.rand(256, device="cuda")
    pool = torch.randn(16, 2, 128, 128, device="cuda").to(state_dtype)
    slots = torch.randperm(16, device="cuda")[:8]
    o, state = ops.hgru2_step(q, f, i, lower_bound, heads=2, state=pool, slots=slots, backend="triton")
    wide = (x.double() for x in (q, f, i, lower_bound))
    want_o, want = ops.hgru2_step(*wide, heads=2, state=pool.double(), slots=slots, backend="chunked")
    assert relative_error(o, want_o) < 4e-3
    assert relative_error(state, want) < (1e-6 if state_dtype == torch.float32 else 4e-3)
