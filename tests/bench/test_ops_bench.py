"""What the operator benchmark times and how it judges: problems and their parts, baselines, a GPU's clock, first
calls."""

import json
import os
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.bench import op_baselines, peaks, timing
from hgrn2.bench.calls import ours
from hgrn2.bench.first_call import empty_kernel_cache
from hgrn2.bench.problems import Setting, cut, draw, two_heads
from hgrn2.bench.settings import OpsBench
from hgrn2.bench.timing import Events
from hgrn2.errors import UserError
from hgrn2.testing.evaluation import evaluate
from hgrn2.testing.large import Expected, compare, expect

SETTING = Setting(op="hgru2", shape="2x70x24x8", lower_bound=0.5, dtype="float32", device="cpu")
OPS = ("hgru2", "gated_outer_scan", "gated_scan", "causal_conv")


@pytest.mark.parametrize("op", OPS)
def test_two_heads_alone_are_two_heads_of_all(op: str) -> None:
    setting = replace(SETTING, op=op)
    problem = draw(setting)
    all_of_them = evaluate(problem.to(torch.float64), "chunked")
    del all_of_them["state"]
    two = evaluate(two_heads(problem, 3).to(torch.float64), "chunked")
    for name, x in cut(all_of_them, 3).items():
        assert x.numel() < all_of_them[name].numel()
        torch.testing.assert_close(x, two[name], rtol=1e-12, atol=1e-12)
    alone = draw(replace(setting, shape="1x9x8x8"))
    assert {k: x.shape for k, x in cut(evaluate(alone, "chunked"), 1).items() if k != "state"} == {
        k: x.shape for k, x in evaluate(alone, "chunked").items() if k != "state"
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_problems_are_drawn_in_the_dtype_and_bounds_in_float32(dtype: str) -> None:
    problem = draw(replace(SETTING, dtype=dtype))
    kinds = {name: x.dtype for name, x in problem.tensors.items() if x is not None}
    assert kinds.pop("lower_bound") == torch.float32
    assert set(kinds.values()) == {getattr(torch, dtype)} == {problem.grad_output.dtype}
    assert torch.equal(draw(SETTING).grad_output, draw(SETTING).grad_output)
    assert not torch.equal(draw(SETTING).grad_output, draw(replace(SETTING, lower_bound=0.0)).grad_output)


def test_the_floor_is_eight_and_twenty_two_bytes_an_element_in_bfloat16() -> None:
    setting = replace(SETTING, dtype="bfloat16")
    elements = 2 * 70 * 24
    assert setting.floor_bytes("forward") == 8 * elements
    assert setting.floor_bytes("fwd+bwd") == 22 * elements
    beside = peaks.Peaks(copied=1e9).beside(setting, "forward", 1.0)
    assert beside["floor_ms"] == pytest.approx(8 * elements / 1e6, abs=1e-4)
    assert beside["times_floor"] == pytest.approx(1e6 / (8 * elements), abs=0.01)


def checked(problem: Any, backend: str) -> list[Any]:
    return ours(problem, backend, lambda: expect(two_heads(problem, 3)), lambda found: cut(found, 3)).check()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_right_operators_pass_and_say_how_far_off_they_are(op: str, dtype: str) -> None:
    findings = checked(draw(replace(SETTING, op=op, dtype=dtype)), "chunked")
    assert all(finding.ok for finding in findings)
    assert any(finding.error > 0 for finding in findings)


def spoil(where: str, how: Any) -> Any:
    """A problem whose operator spoils its output or one gradient on every backend but chunked, which is the
    reference."""
    problem = draw(SETTING)
    right = problem.operator.run

    def wrong(**call: Any) -> tuple[Tensor, Tensor | None]:
        if call["backend"] == "chunked":
            return right(**call)
        call["backend"] = "chunked"
        if where != "output":
            call[where] = how(call[where])
        output, state = right(**call)
        return (how(output) if where == "output" else output), state

    return replace(problem, operator=replace(problem.operator, run=wrong))


@pytest.mark.parametrize("where", ["output", "q", "f", "i", "lower_bound"])
def test_a_slightly_wrong_result_or_gradient_is_seen(where: str) -> None:
    def slightly(x: Tensor) -> Tensor:
        return 1.0001 * x if where == "output" else x.detach() + 1.0001 * (x - x.detach())

    findings = checked(spoil(where, slightly), "reference")
    wrong = {finding.what for finding in findings if not finding.ok}
    expected = {"output", "output alone"} if where == "output" else {f"d {where}"}
    assert wrong >= expected
    if where != "output":
        assert wrong == expected


def test_one_nan_in_a_head_that_is_not_compared_is_seen() -> None:
    def nan(x: Tensor) -> Tensor:
        hole = torch.zeros_like(x)
        hole[0, 3, 12] = torch.nan  # the middle one of three heads
        return x + hole

    findings = checked(spoil("output", nan), "reference")
    assert {finding.what for finding in findings if not finding.ok} == {"output: values that are not finite"}


def test_a_nan_where_the_reference_is_finite_is_never_right() -> None:
    expected = Expected({"output": torch.ones(3)}, {"output": 1e9})
    assert not compare(expected, {"output": torch.tensor([1.0, torch.nan, 1.0])}, factor=1e9)[0].ok


def test_attention_passes_and_a_wrong_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("float32", "bfloat16"):
        assert all(finding.ok for finding in op_baselines.sdpa(replace(SETTING, dtype=dtype)).check())
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(op_baselines, "scaled_dot_product_attention", lambda q, k, v, is_causal: attention(q, k, v))
    assert not all(finding.ok for finding in op_baselines.sdpa(SETTING).check())


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for flash-linear-attention: our scan behind its function's name, arguments and default scale."""
    seen: dict[str, Any] = {"factor": 1.0}

    def chunk_gla(*, q: Tensor, k: Tensor, v: Tensor, g: Tensor, state_v_first: bool) -> tuple[Tensor, None]:
        seen.update(shape=tuple(q.shape), dtypes=(q.dtype, k.dtype, v.dtype, g.dtype))
        scale = seen["factor"] * q.shape[-1] ** -0.5
        return ops.gated_outer_scan(q, k, v, g, scale=scale, backend="chunked")[0], None

    modules = {"fla": {}, "fla.modules": {}, "fla.ops": {}}
    modules |= {"fla.modules.activations": {"swish": torch.nn.functional.silu}, "fla.ops.gla": {"chunk_gla": chunk_gla}}
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.parametrize(("lower_bound", "dtype"), [(0.0, "float32"), (0.5, "float32"), (0.5, "bfloat16")])
def test_fla_computes_the_same_core_with_its_own_scale(fla: dict[str, Any], lower_bound: float, dtype: str) -> None:
    setting = replace(SETTING, lower_bound=lower_bound, dtype=dtype)
    problem = draw(setting)
    fla_core = op_baselines.Fla()
    for implementation in (
        fla_core.core(problem, lambda: expect(two_heads(problem, 3)), 3),
        fla_core.kernel(problem, 3),
    ):
        findings = implementation.check()
        assert all(finding.ok for finding in findings), findings
        names = {finding.what for finding in findings}
        gradients = {"d q", "d f", "d i"} | ({"d lower_bound"} if lower_bound else set())
        assert names == {"output"} | (
            gradients if implementation.backend == "core" else {"d q", "d k", "d v", "d log_f"}
        )
        assert [x.shape for x in implementation.forward()] == [implementation.both()[0].shape]
    narrow = getattr(torch, dtype)
    assert fla["shape"] == (2, 70, 3, 8)
    assert fla["dtypes"] == (narrow, narrow, narrow, torch.float32 if lower_bound else narrow)


def test_a_baseline_that_computes_something_else_is_not_recorded(fla: dict[str, Any]) -> None:
    problem = draw(SETTING)
    fla["factor"] = 1.5
    implementation = op_baselines.Fla().core(problem, lambda: expect(two_heads(problem, 3)), 3)
    assert not all(finding.ok for finding in implementation.check())


def test_without_the_library_fla_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(UserError, match=r"flash-linear-attention==0\.6\.0"):
        op_baselines.Fla()


def test_baselines_by_blanks_or_commas() -> None:
    assert OpsBench(device="cuda", against=("fla,sdpa", "sdpa")).baselines == ("fla", "sdpa")
    assert OpsBench(against=("none",)).baselines == OpsBench(against=()).baselines == ()
    assert OpsBench(device="cuda").measured_dtype == "bfloat16"
    assert "16x2048x2048x128" in OpsBench(device="cuda").measured_shapes


class Clock:
    """A GPU on which a call takes as long as it says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def event(self, enable_timing: bool) -> "Clock.Event":
        assert enable_timing
        return Clock.Event(self)

    class Event:
        def __init__(self, clock: "Clock") -> None:
            self.clock, self.at = clock, 0.0

        def record(self) -> None:
            self.at = self.clock.now

        def elapsed_time(self, other: "Clock.Event") -> float:
            return other.at - self.at


def test_gpu_samples_overwrite_the_cache_and_time_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    class Junk:
        def zero_(self) -> None:
            clock.now += 100.0  # milliseconds that must not be counted
            clock.done.append("junk")

    def call() -> None:
        clock.now += 4.0
        clock.done.append("call")

    monkeypatch.setattr(timing, "_junk", lambda device: Junk())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    sample = Events(call, at_least=0.01)
    assert sample() == pytest.approx(0.004)
    assert sample.number == 3  # as many as last 10 ms
    clock.done.clear()
    assert sample() == pytest.approx(0.004)
    assert [a for a, b in pairwise(clock.done) if b == "call"] == ["junk"] * 3
    assert clock.done.count("call") == 3
    assert len(sample.host) == 1 + 3 + 3
    assert sample.host_median >= 0


def test_an_empty_cache_is_a_new_folder_and_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.delenv("HGRN2_CACHE", raising=False)
    with empty_kernel_cache():
        folders = [Path(os.environ[name]) for name in ("TRITON_CACHE_DIR", "HGRN2_CACHE")]
        assert not any(folder.exists() for folder in folders)
        assert all(folder.parent.is_dir() for folder in folders)
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
    assert "HGRN2_CACHE" not in os.environ
    assert not folders[0].parent.exists()


def test_a_setting_travels_as_json() -> None:
    assert Setting(**json.loads(json.dumps(asdict(SETTING)))) == SETTING
