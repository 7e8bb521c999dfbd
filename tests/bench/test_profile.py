"""`hgrn2 bench profile`: groups of operators and kernels, gaps, and the least times."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hgrn2.bench.floors import Peaks, floors
from hgrn2.bench.groups import GAPS, WHOLE, group_of
from hgrn2.bench.profile_settings import ProfileBench
from hgrn2.bench.settings import Size
from hgrn2.bench.trace import MARK, PART, times
from hgrn2.errors import UserError
from hgrn2.layers.kinds import KINDS
from hgrn2.models.count import flops_per_token

Run = Callable[..., Any]


def test_groups_of_a_step_add_up_to_it(bench: Run, written: Run, tiny: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--length", 32, "--tokens", 64, "--new-tokens", 3, "--context", 8, "--repeats", 1, "--threads", 1)
    done = bench("profile", *tiny, *options, "--out", tmp_path)
    assert done.code == 0, done.err
    assert "A training step of 2 x 32 tokens" in done.out
    rows = written(tmp_path / "profile.jsonl")
    for task, subject in (("train", "hgrn2"), ("decode", "hgrn2"), ("decode", "hgrn2-graph")):
        mine = {r["case"]["group"]: r for r in rows if (r["case"]["task"], r["subject"]) == (task, subject)}
        whole = mine.pop(WHOLE)
        parts = sum(row["value"] for row in mine.values())
        assert parts == pytest.approx(whole["details"]["profiled_ms"], rel=1e-3)
        assert mine[GAPS]["value"] > 0
        assert whole["details"]["floor_ms"] < whole["value"]
        if task == "train":
            assert {"matrix products", "scan", "norms", "loss", "optimiser", "activations", "dispatch"} <= set(mine)
            # 2 layers of 4 products and the head, forward and twice backward
            assert mine["matrix products"]["details"]["calls"] == 27


def event(name: str, begin: float, lasted: float, cat: str = "cpu_op", args: Any = None) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": lasted, "tid": 1, "args": args or {}}


EAGER = [
    event(MARK, 0, 1000, "user_annotation"),
    event(f"{PART}Norm", 10, 50, "user_annotation"),
    event("aten::mul", 20, 10, args={"External id": 1, "Sequence number": 7, "Fwd thread id": 0}),
    event("aten::add", 100, 10, args={"External id": 2, "Sequence number": 8, "Fwd thread id": 0}),
    event(
        "autograd::engine::evaluate_function: AddBackward0", 200, 50, args={"Sequence number": 8, "Fwd thread id": 1}
    ),
    event("aten::sum", 210, 10, args={"External id": 3}),
    event(
        "autograd::engine::evaluate_function: MulBackward0", 300, 50, args={"Sequence number": 7, "Fwd thread id": 1}
    ),
    event("aten::mul", 310, 30, args={"External id": 4}),
    event("Optimizer.step#AdamW.step", 500, 100, "user_annotation"),
    event("aten::addcdiv_", 510, 20, args={"External id": 5}),
]


def test_own_time_of_operators() -> None:
    found = times(EAGER, gpu=False)
    milliseconds = {group: round(1e3 * ms) for group, ms in found.ms.items()}
    assert milliseconds == {"norms": 40, "other": 20, "optimiser": 20, "dispatch": 60, GAPS: 860}
    assert found.whole == 1.0


def test_kernels_and_the_gaps_between_them() -> None:
    generic = "void at::native::vectorized_elementwise_kernel<4, at::native::BinaryFunctor<float>>"
    kernels = [
        event(generic, 1000, 10, "kernel", args={"External id": 1}),  # the norm, forward
        event(generic, 1010, 10, "kernel", args={"External id": 2}),
        event(generic, 1025, 15, "kernel", args={"External id": 4}),  # the norm, backward
        event("nvjet_tst_192x152_64x5_1x2_h_bz_coopB_TNN", 1030, 20, "kernel", args={"External id": 99}),  # of a graph
        event("small_forward", 1060, 5, "kernel"),
        event("Memcpy DtoH (Device -> Pinned)", 1070, 2, "gpu_memcpy"),
    ]
    found = times([*EAGER, *kernels], gpu=True)
    microseconds = {group: round(1e3 * ms) for group, ms in found.ms.items()}
    # from 1000 to 1072; nothing runs in 1020–1025, 1050–1060 and 1065–1070
    assert microseconds == {"norms": 25, "other": 10, "matrix products": 20, "scan": 5, "copies": 2, GAPS: 20}
    assert (round(1e3 * found.whole), found.host, found.calls["norms"]) == (72, 1.0, 2)


@pytest.mark.parametrize(
    ("name", "part", "group"),
    [
        ("aten::addmm", "", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "norms", "matrix products"),
        ("hgrn2::hgru2_backward", "", "scan"),
        ("backward", "", "scan"),
        ("_rows_kernel", "", "loss"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", "", "norms"),
        ("triton_poi_fused_mul_silu_4", "", "activations"),
        ("aten::cat", "activations", "copies"),
        ("aten::mul", "activations", "activations"),
        ("aten::copy_", "optimiser", "optimiser"),
        ("MmBackward0", "norms", "dispatch"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "", "optimiser"),
        ("aten::add", "", "other"),
    ],
)
def test_group_of_a_name(name: str, part: str, group: str) -> None:
    assert group_of(name, part) == group


def test_least_times() -> None:
    config, peaks = Size(width=64, layers=2, head_size=16, glu_width=320, vocab_size=32).config(), Peaks(1e9, 1e6)
    trained = floors(config, peaks, tokens=100, training=True, itemsize=2)
    scans = sum(n * KINDS[mixer.kind].scan(64, mixer, 0) for mixer, n in config.mixer_counts)
    counted = flops_per_token(config, training=True) - 3 * scans
    assert trained["matrix products"] == pytest.approx(1e3 * 100 * counted / 1e9)
    assert trained["scan"] == pytest.approx(1e3 * 22 * 2 * 64 * 100 / 1e6)  # 22 bytes an element (kernels in bfloat16)
    decoded = floors(config, peaks, tokens=1, training=False, itemsize=4, state="bfloat16")
    assert decoded["scan"] == pytest.approx(1e3 * 2 * (2 * 64 * 16 * 2) / 1e6)
    assert decoded["matrix products"] == pytest.approx(1e3 * 4 * counted / 6 / 1e6)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="none of them trains"):
        ProfileBench(tasks=("train",), models=("hgrn2-graph",))
    with pytest.raises(UserError, match="multiple of the length"):
        ProfileBench(length=100)
