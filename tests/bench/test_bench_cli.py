"""`hgrn2 bench ops | train | decode` through the command line, at tiny sizes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.bench import train
from hgrn2.bench.settings import Limits, Size, TrainBench
from hgrn2.cli.main import entry
from hgrn2.ops.backend import choose
from hgrn2.ops.hgru2 import chunked
from hgrn2.ops.native import outer as native_outer

Run = Callable[..., Any]
needs_transformers = pytest.mark.usefixtures("baselines")


@needs_transformers
def test_train_beside_baselines(bench: Run, written: Run, tiny: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("train", *tiny, "--lengths", 8, 16, "--tokens", 32, "--repeats", 2, "--threads", 1)
    done = bench(*arguments, "--out", tmp_path / "new", "--json")
    assert done.code == 0, done.err
    rows = written(tmp_path / "new" / "train.jsonl")
    assert rows == done.rows
    assert [(row["subject"], row["case"]["tokens"]) for row in rows] == [
        (subject, length) for length in (8, 16) for subject in ("hgrn2", "llama-hf", "mamba-hf")
    ]
    assert [row["case"]["batch"] for row in rows] == [4] * 3 + [2] * 3
    counts = {row["details"]["parameters"] for row in rows}
    assert max(counts) / min(counts) < 1.05 * 1.05
    for row in rows:
        assert row["unit"] == "tokens/s"
        assert row["value"] > 0
        assert row["low"] <= row["median"] <= row["high"]
        assert row["repeats"] == 2
        assert row["machine"]["threads"] == 1
        assert row["details"]["interleaved"]
        assert "freed_memory_kept" in row["details"]
    assert "T 16" in done.err


@needs_transformers
def test_decode_beside_baselines(bench: Run, written: Run, tiny: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("decode", *tiny, "--contexts", 8, 40, "--tokens", 3, "--repeats", 2, "--out", tmp_path)
    done = bench(*arguments)
    assert done.code == 0, done.err
    assert "hgrn2 after 40 tokens:" in done.out
    assert "8 rows added" in done.out
    rows = written(tmp_path / "decode.jsonl")
    state = {(row["subject"], row["case"]["context"]): row["details"]["state_bytes"] for row in rows}
    assert state["hgrn2", 8] == state["hgrn2", 40] == 2 * 64 * 16 * 4
    assert state["mamba-hf", 8] == state["mamba-hf", 40]
    assert state["llama-hf", 40] == 5 * state["llama-hf", 8]
    for row in rows:
        shortest = next(r for r in rows if r["subject"] == row["subject"] and r["case"]["context"] == 8)
        ratio = row["details"]["of_shortest_context"]
        assert ratio == pytest.approx(row["median"] / shortest["median"], abs=1e-4)
        assert {"prefill_seconds", "prefill_peak_bytes", "decode_peak_bytes"} <= set(row["details"])


def test_ops_on_every_backend(bench: Run, written: Run, tmp_path: Path) -> None:
    shape = ("--shapes", "2x70x16x8", "--repeats", 2, "--max-seconds", 0.05)
    done = bench("ops", *shape, "--out", tmp_path)
    assert done.code == 0, done.err
    rows = written(tmp_path / "ops.jsonl")
    backends = {"chunked", "reference"} | {choose(torch.device("cpu")).backend}
    for op in ("hgru2", "gated_outer_scan", "gated_scan", "causal_conv"):
        for bound in (0.0, 0.5) if op == "hgru2" else (None,):
            for direction in ("forward", "fwd+bwd"):
                case = {"op": op, "pass": direction, "BxTxDxn": "2x70x16x8", "dtype": "float32"}
                case |= {} if bound is None else {"bound": bound}
                found = [row for row in rows if row["case"] == case]
                assert {row["backend"] for row in found} - {"torch"} == backends
                assert sum(row["subject"] == "sdpa" for row in found) == (op == "hgru2")
    assert all(row["unit"] == "ms" and row["value"] > 0 and row["details"]["largest_error"] for row in rows)
    again = bench("ops", *shape, "--ops", "gated_scan", "--backends", "chunked", "--out", tmp_path, "--json")
    assert len(again.rows) == 2  # no attention beside an element-wise scan
    assert written(tmp_path / "ops.jsonl") == rows + again.rows


def test_a_wrong_operator_is_not_timed_and_others_are(
    bench: Run, written: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = native_outer.hgru2_forward

    def wrong(*arguments: Any, **options: Any) -> Any:
        o, final = right(*arguments, **options)
        return o * 1.001, final

    if choose(torch.device("cpu")).backend != "native":
        pytest.skip("no compiler for the native kernels")
    monkeypatch.setattr(native_outer, "hgru2_forward", wrong)
    shape = ("--shapes", "1x70x16x8", "--bound", 0.5, "--against", "none")
    done = bench("ops", *shape, "--ops", "gated_scan", "hgru2", "--repeats", 1, "--out", tmp_path)
    assert done.code == 1
    assert "hgru2 of hgrn2 on native, 1x70x16x8 float32, bound 0.5: output" in done.err
    assert "was not recorded" in done.err
    assert "gated_scan of" not in done.err.replace("checking gated_scan of", "")
    rows = written(tmp_path / "ops.jsonl")
    found = {(row["case"]["op"], row["backend"]) for row in rows}
    assert ("hgru2", "native") not in found
    assert {("hgru2", "chunked"), ("gated_scan", "native")} <= found


def test_a_named_backend_that_cannot_serve_stops_before_anything_is_measured(bench: Run, tmp_path: Path) -> None:
    done = bench("ops", "--backends", "native", "cuda", "--out", tmp_path)
    assert done.code == 2
    assert "backend cuda cannot serve" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_said_plainly(bench: Run, tmp_path: Path) -> None:
    done = bench("ops", "--device", "cuda", "--out", tmp_path)
    assert done.code == 2
    assert "needs a GPU that PyTorch can use" in done.err


def test_a_wrong_reference_stops_everybody(bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunked.forward

    def wrong(*arguments: Any, **options: Any) -> Any:
        o, final = right(*arguments, **options)
        return o * 1.001, final

    monkeypatch.setattr(chunked, "forward", wrong)
    done = bench(
        "ops", "--shapes", "1x71x16x8", "--ops", "hgru2", "--against", "none", "--repeats", 1, "--out", tmp_path
    )
    assert done.code == 1
    assert "against the token loop, chunked float64" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_and_a_first_call(bench: Run, written: Run, tmp_path: Path) -> None:
    sizes = ("--shapes", "1x64x16x8", "--ops", "hgru2", "--bound", 0.5, "--repeats", 1, "--max-seconds", 0.05)
    done = bench("ops", *sizes, "--sweep", 16, 64, "--sweep-tokens", 64, "--first-call", "--out", tmp_path)
    assert done.code == 0, done.err
    sweep = written(tmp_path / "sweep.jsonl")
    backend = choose(torch.device("cpu")).backend
    assert {(row["case"]["tokens"], row["case"]["pass"], row["backend"]) for row in sweep} == {
        (tokens, direction, who)
        for tokens in (16, 64)
        for direction in ("forward", "fwd+bwd")
        for who in (backend, "torch")
    }
    assert all(row["case"]["B x T"] == 64 and row["case"]["bound"] == 0.5 for row in sweep)
    first = [row for row in written(tmp_path / "ops.jsonl") if row["case"]["pass"] == "first fwd+bwd"]
    assert [row["backend"] for row in first] == ([backend] if backend == "native" else [])
    for row in first:
        assert row["unit"] == "s"
        assert row["value"] > row["details"]["second_call_ms"] / 1e3
    drawn = bench("table", "--results", tmp_path, "--out", tmp_path / "docs" / "page.md")
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "docs" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "](sweep.png)" in (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")


def test_hgrn2_alone_needs_no_transformers(
    bench: Run, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    sizes = (*tiny, "--tokens", 16, "--repeats", 1, "--out", tmp_path)
    assert bench("train", "--models", "hgrn2", "--lengths", 8, *sizes).code == 0
    done = bench("train", "--lengths", 8, *sizes)
    assert done.code == 2
    assert "hgrn2[bench]" in done.err
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 1


@needs_transformers
def test_a_slow_mamba_is_estimated_from_two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []

    def seconds_by_depth(bench: TrainBench, subject: Any, length: int) -> Callable[[], float]:
        layers = len(subject.model.backbone.layers)
        depths.append(layers)
        return lambda: 0.5 + 2.0 * layers

    monkeypatch.setattr(train, "_step", seconds_by_depth)
    size = Size(width=64, layers=2, head_size=16, glu_width=320, vocab_size=32)
    rows: list[Any] = []
    for limit in (1.0, 1000.0):
        settings = TrainBench(
            size=size, models=("mamba-hf",), lengths=(8,), tokens=8, limits=Limits(repeats=1, max_seconds=limit)
        )
        train.measure(settings, rows.append)
    estimated, whole = rows
    layers = depths[-1]
    assert estimated.details["estimated_from"] == f"1 and 2 of its {layers} layers"
    assert "estimated_from" not in whole.details
    assert estimated.value == pytest.approx(whole.value) == 8 / (0.5 + 2.0 * layers)
    assert estimated.details["parameters"] == whole.details["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ops", "--shapes", "8x512"), "write BxTxDxn"),
        (("ops", "--shapes", "1x8x10x4"), "do not divide"),
        (("ops", "--shapes", "0x8x8x4"), "at least 1"),
        (("ops", "--ops", "nothing"), "invalid choice"),
        (("ops", "--backends", "chunked", "chunked"), "repeated"),
        (("ops", "--repeats", "0"), "at least 1"),
        (("ops", "--bound", "1"), "must be in [0,1)"),
        (("ops", "--bound", "0", "0"), "repeated"),
        (("ops", "--against", "sdpa,mamba"), "choose from sdpa, fla, none"),
        (("ops", "--against", "fla"), "runs on a GPU only"),
        (("ops", "--against-shapes", "1x8x8x4"), "which --shapes does not"),
        (("ops", "--sweep", "48"), "must divide --sweep-tokens"),
        (("train", "--tokens", "100", "--lengths", "64"), "multiple of the length"),
        (("train", "--lengths"), "name at least one"),
        (("train", "--lengths", "8", "8"), "repeated"),
        (("train", "--models", "llama-hf-static"), "invalid choice"),
        (("train", "--max-seconds", "0"), "must be positive"),
        (("train", "--threads", "0"), "at least 1"),
        (("train", "--width", "30"), "does not divide"),
        (("train", "--width", "30", "--head-size", "15"), "even"),
        (("decode", "--contexts", "0"), "at least 1"),
        (("decode", "--tokens", "0"), "at least 1"),
        (("decode", "--glu-width", "0"), "at least 1"),
        (("decode", "--unknown"), "nrecognized"),
        (("nothing",), "no task of hgrn2 bench"),
    ],
)
def test_bad_arguments_exit_with_2(bench: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    out = () if arguments == ("nothing",) else ("--out", tmp_path / "results")
    done = bench(*arguments, *out)
    assert done.code == 2
    assert message in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "results").exists()


def test_an_out_that_is_a_file_exits_with_2(bench: Run, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("kept")
    done = bench("ops", "--out", tmp_path / "results")
    assert (done.code, (tmp_path / "results").read_text()) == (2, "kept")
    assert "is a file" in done.err


@pytest.mark.parametrize("task", ["ops", "train", "decode", "table"])
def test_help_has_an_example(bench: Run, task: str) -> None:
    done = bench(task, "--help")
    assert done.code == 0
    assert f"Example: hgrn2 bench {task}" in done.out


def test_rows_are_plain_json(bench: Run, tiny: tuple[str, ...], tmp_path: Path) -> None:
    done = bench(
        "decode",
        *tiny,
        "--models",
        "hgrn2",
        "--contexts",
        4,
        "--tokens",
        2,
        "--repeats",
        1,
        "--out",
        tmp_path,
        "--json",
    )
    assert json.loads((tmp_path / "decode.jsonl").read_text()) == done.rows[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_parity_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["bench", "parity", "--layers", "2", "--out", str(tmp_path)]) == 2
    assert "fla's forward needs a GPU" in capsys.readouterr().err
    assert entry(["bench", "parity", "--tokens", "0", "--out", str(tmp_path)]) == 2
    assert "--tokens is 0; it must be at least 1" in capsys.readouterr().err
