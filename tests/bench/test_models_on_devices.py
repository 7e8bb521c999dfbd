"""What the benches of whole models do on a GPU, on the CPU; and settings, presets and citations."""

import gc
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hgrn2 import gpu
from hgrn2.bench import attempt as attempts
from hgrn2.bench import decode, train
from hgrn2.bench.attempt import attempt
from hgrn2.bench.bench_model import Setup
from hgrn2.bench.models import build
from hgrn2.bench.settings import PRESETS, DecodeBench, Limits, Size, TrainBench
from hgrn2.errors import UserError
from hgrn2.gpu import matrix_rate
from hgrn2.models.modes import reading
from hgrn2.models.presets import preset
from hgrn2.rows import Row

TINY = Size(width=64, layers=2, head_size=16, glu_width=320, vocab_size=32)
ONCE = Limits(repeats=1)
Run = Callable[..., Any]


def one_by_one(bench: TrainBench, rows: list[Row]) -> list[str]:
    run = train._Run(bench=bench, record=rows.append, progress=lambda *told: None, rate=1e9)
    return train._one_by_one(run)


def test_presets_are_the_published_shapes() -> None:
    assert PRESETS["374m"].parameters == 373_916_672
    assert PRESETS["1.36b"].parameters == 1_364_396_032
    for name, other in (("374m", "hgrn2_340m"), ("1.36b", "hgrn2_1.3b")):
        size, model = PRESETS[name], preset(other)
        assert (size.width, size.layers, size.glu_width) == (model.width, model.layers, model.glu_width)
    assert TrainBench(preset="374m").measured_size == PRESETS["374m"]
    assert DecodeBench(size=TINY).measured_size == TINY


def test_baselines_by_name() -> None:
    assert TrainBench(against=("sdpa,mamba", "none")).measured == ("hgrn2", "llama-hf", "mamba-hf")
    assert TrainBench(against=("none",)).measured == ("hgrn2",)
    assert TrainBench(against=("fla", "sdpa"), device="cuda").measured == ("hgrn2", "fla", "llama-hf")
    assert DecodeBench(against=("sdpa",)).measured == ("hgrn2", "hgrn2-graph", "llama-hf")
    assert TrainBench(device="cuda").measured_dtype == "bfloat16"
    assert TrainBench().measured_dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--against", "fla"), "add --device cuda"),
        (("train", "--models", "fla"), "add --device cuda"),
        (("train", "--against", "gpt"), "choose from sdpa, llama, mamba, fla, none"),
        (("train", "--preset", "7b"), "invalid choice"),
        (("train", "--recompute", "glu", "glu"), "repeated"),
        (("train", "--model-seconds", "0"), "must be positive"),
        (("decode", "--batches", "0"), "at least 1"),
        (("decode", "--state-dtype", "float16"), "invalid choice"),
        (("decode", "--against", "fla"), "add --device cuda"),
    ],
)
def test_bad_arguments(bench: Run, tmp_path: Any, arguments: tuple[str, ...], message: str) -> None:
    done = bench(*arguments, "--out", tmp_path / "results")
    assert done.code == 2
    assert message in " ".join(done.err.replace("│", " ").split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("task", ["train", "decode"])
def test_no_gpu_is_one_line(bench: Run, tmp_path: Any, task: str) -> None:
    done = bench(task, "--device", "cuda", "--models", "hgrn2", "--out", tmp_path)
    assert done.code == 2
    assert "--device cuda needs a GPU that PyTorch can use" in done.err


def test_every_variant_gets_its_row(baselines: None) -> None:
    rows: list[Row] = []
    bench = TrainBench(
        size=TINY, models=("hgrn2", "llama-hf"), lengths=(8,), tokens=16, recompute=("none", "glu", "block"),
        dtype="bfloat16", loss="chunked", limits=ONCE,
    )  # fmt: skip
    assert one_by_one(bench, rows) == []
    assert [(row.subject, row.case.get("recompute")) for row in rows] == [
        ("hgrn2", None), ("llama-hf", None), ("hgrn2", "glu"), ("hgrn2", "block"), ("llama-hf", "block"),
    ]  # fmt: skip
    for row in rows:
        assert row.case["dtype"] == "bfloat16"
        assert row.details["first_steps_s"] >= 0
        assert row.details["mfu"] > 0


def test_one_that_fails_leaves_the_others(baselines: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = train.made_ready

    def broken(bench: TrainBench, name: str, *rest: Any) -> Any:
        if name == "hgrn2":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.\nmore")
        return real(bench, name, *rest)

    monkeypatch.setattr(train, "made_ready", broken)
    rows: list[Row] = []
    bench = TrainBench(size=TINY, models=("hgrn2", "llama-hf"), lengths=(8,), tokens=16, limits=ONCE)
    why = "out of memory (CUDA out of memory. Tried to allocate 7 GiB.)"
    assert one_by_one(bench, rows) == [f"hgrn2, T 8: {why}"]
    assert [row.subject for row in rows] == ["llama-hf"]


def test_decoding_row_by_row(baselines: None) -> None:
    rows: list[Row] = []
    bench = DecodeBench(
        size=TINY, models=("hgrn2", "hgrn2-graph", "llama-hf"), contexts=(30, 8), batches=(1, 3), tokens=4,
        state_dtype="bfloat16", limits=ONCE,
    )  # fmt: skip
    assert decode._one_by_one(bench, rows.append, lambda *told: None, {}) == []
    order = [(batch, context) for batch in (1, 3) for context in (8, 30)]
    assert [(row.subject, row.case["batch"], row.case["context"]) for row in rows] == [
        (name, *place) for name in bench.models for place in order
    ]
    state = {(row.subject, row.case["batch"], row.case["context"]): row.details["state_bytes"] for row in rows}
    assert state["hgrn2", 3, 30] == state["hgrn2-graph", 3, 8] == 3 * 2 * 64 * 16 * 2
    for row in rows:
        assert row.value > 0
        assert row.case["state_dtype"] == "bfloat16"
        if row.case["context"] == 8:
            assert row.details["of_shortest_context"] == 1
        if row.subject == "hgrn2-graph":
            assert row.details["captured"] is False
            assert row.details["tokens_as_without_graph"] == 1


def test_other_tokens_than_the_plain_model_are_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any) -> None:
        self.chosen.fill_(int(self.tokens[0, 0]) ^ 1)

    monkeypatch.setattr(decode.Steps, "_step", wrong)
    rows: list[Row] = []
    bench = DecodeBench(size=TINY, models=("hgrn2-graph",), contexts=(8,), tokens=4, limits=ONCE)
    (line,) = decode._one_by_one(bench, rows.append, lambda *told: None, {})
    assert "chooses other tokens than the plain model" in line
    assert rows == []


def test_decode_on_the_command_line(bench: Run, tiny: tuple[str, ...], tmp_path: Any) -> None:
    arguments = ("decode", *tiny, "--models", "hgrn2", "hgrn2-graph", "--contexts", 8, "--batches", 1, 2)
    done = bench(*arguments, "--tokens", 3, "--repeats", 1, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    assert [(row["subject"], row["case"]["batch"]) for row in done.rows] == [
        ("hgrn2", 1), ("hgrn2-graph", 1), ("hgrn2", 2), ("hgrn2-graph", 2),
    ]  # fmt: skip


def test_setups_change_no_result() -> None:
    ids = torch.randint(32, (2, 9))
    losses = []
    for setup in (None, Setup(recompute="block", loss="chunked"), Setup(recompute="glu", loss="full")):
        subject = build("hgrn2", TINY, seed=0, setup=setup)
        loss = subject.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1:], [losses[0], losses[0]])


def test_prompts_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrn2.bench import models

    subject, prompt = build("hgrn2", TINY, seed=0), torch.randint(32, (4, 23))
    with reading(subject.model):
        whole = subject.prefill(prompt, 0)[0]
        monkeypatch.setattr(models, "SEGMENT_BATCH", 20)  # five tokens of four sequences
        torch.testing.assert_close(subject.prefill(prompt, 0)[0], whole, rtol=1e-4, atol=1e-5)


def test_llama_flops_count_products(baselines: None) -> None:
    subject = build("llama-hf", TINY, seed=0)
    assert subject.flops is not None
    layer = 4 * 64**2 + 3 * 64 * subject.model.config.intermediate_size
    assert subject.flops(100) == 3 * (2 * (2 * layer + 64 * 32) + 2 * 2 * 100 * 64)


def test_an_attempt_keeps_its_error_and_frees_what_it_held() -> None:
    alive: list[Any] = []

    class Heavy:
        pass

    def fail() -> None:
        import weakref

        heavy = Heavy()
        alive.append(weakref.ref(heavy))
        raise ValueError("first line\nsecond line")

    with attempt(60) as outcome:
        fail()
    assert outcome.why == "ValueError: first line"
    attempts.free()
    gc.collect()
    assert alive[0]() is None
    with attempt(60) as fine:
        pass
    assert fine.why is None
    with pytest.raises(KeyboardInterrupt), attempt(60):
        raise KeyboardInterrupt


def test_an_attempt_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "free", lambda: None)  # it could take longer than the attempt may
    handler = signal.getsignal(signal.SIGALRM)
    with attempt(0.05) as outer:
        with attempt(60) as inner:
            while True:
                time.sleep(0.001)
        time.sleep(1)
    assert inner.why is not None
    assert outer.why is not None
    assert "given up after" in outer.why
    with attempt(5) as quick:
        pass
    assert quick.why is None
    assert signal.getsignal(signal.SIGALRM) is handler  # the alarm is that of before, if there was one


def test_the_rate_of_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SIDE, "cpu", 32)
    assert matrix_rate(torch.device("cpu"), torch.float32) > 0


def test_without_fla_one_line_says_how_to_get_it(baselines: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(UserError, match=r"flash-linear-attention==0\.6\.0"):
        build("fla", TINY, seed=0)
