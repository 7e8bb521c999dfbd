"""Plans hold what processes really hold and send, and the page shows what the code says."""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hgrn2.cli.main import entry
from hgrn2.layers.block import Block
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.parallel import collectives
from hgrn2.parallel.config import ParallelConfig
from hgrn2.parallel.machine import H200
from hgrn2.parallel.pieces import local
from hgrn2.parallel.ranks import Ranks
from hgrn2.rows import read_rows
from hgrn2.settings import from_dict, to_dict
from hgrn2.train.config import OptimConfig, RunConfig, TrainConfig
from hgrn2.train.optim import Optimizers
from hgrn2.train.plan import plan, that_fits
from hgrn2.train.plan_table import SEQUENCES, markdown

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(vocab_size=61, width=32, layers=3, glu_width=48, mixer=MixerConfig(head_size=8))
HYBRID = replace(
    MODEL, pattern=("hgru2", "attention"), other=MixerConfig(kind="attention", head_size=8), tie_embeddings=True
)
TRAIN = TrainConfig(batch_size=8, sequence_length=32, accumulate=2, loss="full", compile_blocks=False)
RUNS: list[dict[str, Any]] = [
    {"parallel": ParallelConfig(data=2)},
    {"parallel": ParallelConfig(data=2, shard=1), "train": replace(TRAIN, precision="bfloat16", keep_best=True)},
    {"parallel": ParallelConfig(tensor=2), "train": replace(TRAIN, recompute="glu")},
    {"parallel": ParallelConfig(tensor=2), "model": HYBRID, "train": replace(TRAIN, precision="bfloat16")},
    {"parallel": ParallelConfig(context=2), "optim": OptimConfig(optimizer="muon")},
]


class Sent:
    """Counts bytes as rings send them while it is in place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total = 0.0
        for name, whole, times in (("all_gather_single", 0, 1), ("reduce_scatter_single", 1, 1), ("all_reduce", 0, 2)):
            own = getattr(dist, name)
            monkeypatch.setattr(dist, name, self.counting(own, whole, times))
        monkeypatch.setattr(collectives, "_all_gather", self.counting(collectives._all_gather, 0, 1))
        monkeypatch.setattr(collectives, "_reduce_scatter", self.counting(collectives._reduce_scatter, 1, 1))

    def counting(self, call: Callable[..., Any], whole: int, times: int) -> Callable[..., Any]:
        def counted(*tensors: Any, **options: Any) -> Any:
            ranks = dist.get_world_size(options.get("group"))
            named = [options[name] for name in ("output_tensor", "output", "input_tensor", "input") if name in options]
            self.total += times * (ranks - 1) / ranks * [*tensors, *named][whole].nbytes
            return call(*tensors, **options)

        return counted


@functools.cache
def ranks_of(layout: ParallelConfig) -> Ranks:
    """Making groups of processes takes longer than what is tested here."""
    return Ranks(layout, torch.device("cpu"))


def measured(run: RunConfig) -> dict[str, float]:
    """A step of one accumulation part in this process: bytes of weights, states and activations, and those sent."""
    torch.manual_seed(0)
    bfloat16 = run.train.precision == "bfloat16"
    model, ranks = LanguageModel(run.model), ranks_of(run.parallel)
    model.set_recompute(run.train.recompute)
    ranks.spread(model, bfloat16=bfloat16)
    optimizers, kept = Optimizers(model, run.optim), dict[int, int]()

    def pack(y: torch.Tensor) -> torch.Tensor:
        storage = y.untyped_storage()
        if storage._cdata not in {local(p.detach()).untyped_storage()._cdata for p in model.parameters()}:
            kept[storage._cdata] = storage.nbytes()
        held.append(y)  # so that no other tensor takes its place while they are counted
        return y

    held: list[torch.Tensor] = []

    def watched(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
                return forward(*args, **options)

        return call

    for block in (module for module in model.modules() if isinstance(module, Block)):
        block.forward = watched(block.forward)  # type: ignore[method-assign]
    rows = run.train.batch_size // (run.parallel.data * run.train.accumulate)
    tokens, targets = torch.randint(61, (2, rows, run.train.sequence_length // run.parallel.context))
    with pytest.MonkeyPatch.context() as patch:
        sent = Sent(patch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model.loss(tokens, targets, method="full")
        loss.backward()
    held.clear()
    optimizers.step()
    # The input of a GLU that is computed again is kept by checkpointing, which no hook sees.
    unseen = run.model.layers * tokens.numel() * run.model.width * 4 if run.train.recompute == "glu" else 0
    return {
        "weights": sum(local(p.detach()).nbytes for p in model.parameters()),
        "optimiser states": sum(x.nbytes for x in optimizers.tensors().values()),
        "activations that blocks keep": unseen + sum(kept.values()), "sent": run.train.accumulate * sent.total,
    }  # fmt: skip


def plans_hold() -> None:
    for operator in ("rms_norm", "gated_unit"):  # plans are of GPUs; those in C++ on a CPU keep less for the backward
        vars(import_module(f"hgrn2.ops.{operator}"))["seen_by_others"] = lambda *tensors: True
    for run, wanted in json.loads((Path(os.environ["HGRN2_TEST"]) / "plans.json").read_text()):
        found = measured(from_dict(RunConfig, run, "plans"))
        pairs = {name: (value, wanted[name]) for name, value in found.items()}
        shares = {name: planned / real for name, (real, planned) in pairs.items()}
        shares |= (
            {"activations that blocks keep": 1.0} if run["train"]["recompute"] == "block" else {}
        )  # unseen by hooks
        if dist.get_rank() == 0:
            # Norms over the full width and lower bounds are exchanged too: small, and not counted.
            close = abs(shares["activations that blocks keep"] - 1) < 0.02 and 0.9 < shares["sent"] < 1.02
            exact = shares["weights"] == shares["optimiser states"] == 1
            assert close, (pairs, run["parallel"], run["train"]["recompute"])
            assert exact, (pairs, run["parallel"], run["optim"]["optimizer"])


def test_plans_hold_on_processes(ranks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and states to the byte, activations to 2 %, bytes sent to a tenth; the plan itself needs one process."""
    monkeypatch.setenv("HGRN2_TEST", str(tmp_path))
    made = []
    for settings in RUNS:
        run = RunConfig(**{"model": MODEL, "train": TRAIN} | settings)
        found = plan(run)
        made.append((to_dict(run), found.memory | {"sent": sum(one.sent for one in found.traffic)}))
        assert found.peak == sum(found.memory.values()) > 0
        assert found.tokens_per_s * found.step_s == pytest.approx(run.train.tokens_per_step)
    assert not dist.is_initialized()
    (tmp_path / "plans.json").write_text(json.dumps(made))
    ranks(2, plans_hold, timeout_s=120)


def test_what_is_computed_again_takes_time_and_saves_memory() -> None:
    train = replace(TRAIN, batch_size=512, sequence_length=512, precision="bfloat16")
    runs = [RunConfig(model=MODEL, train=replace(train, recompute=what)) for what in ("none", "glu", "block")]
    found = [plan(run) for run in runs]
    assert found[0].peak > found[1].peak > found[2].peak
    assert found[0].seconds["products"] < found[1].seconds["products"] < found[2].seconds["products"]
    tight = replace(H200, memory=found[1].peak / 0.9 + 1)
    assert that_fits(runs[0], tight).run.train.recompute == "glu"


def test_the_machine_is_that_of_the_rows() -> None:
    rows = [row for row in read_rows(ROOT / "results" / "peaks.jsonl") if row.machine["gpu"] == H200.name]
    found = {row.unit: row.median for row in rows}
    assert H200.copied == pytest.approx(1e9 * found["GB/s"], rel=1e-3)
    assert H200.matrix == pytest.approx(1e12 * found["TFLOP/s"], rel=1e-3)


@pytest.mark.parametrize("gpus", [8, *(pytest.param(n, marks=pytest.mark.full) for n in SEQUENCES if n != 8)])
def test_the_page_has_the_table(gpus: int) -> None:
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    for line in markdown(gpus=(gpus,)).splitlines():
        assert line in page, f"hgrn2 train lm --plan-table prints another line:\n{line}"


def test_the_verb_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "lm", "demo", "--model", "hgrn2_70m", "--out", str(tmp_path / "run"), "--plan"]
    settings = ["--set", "parallel.data=64", "parallel.shard=8", "train.batch_size=128"]
    assert entry([*asked, *settings]) == 0
    said = capsys.readouterr().out
    assert "weights gathered (NVLink)" in said
    assert "gradients of copies (network)" in said
    assert entry([*asked, "--json", *settings]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["gpus"] == 64
    assert values["peak_bytes"] == pytest.approx(sum(values["memory_bytes"].values()))
    assert entry([*asked, *settings, "parallel.tensor=3"]) == 2
    assert "4 heads of hgru2 do not divide by parallel.tensor 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
