"""A recall run from beginning to end: folder, resume, training, accuracy on every test segment, report."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hgrn2 import cpu
from hgrn2.files import owned, read_json, write_json
from hgrn2.models.count import state_bytes
from hgrn2.models.gates import gate_statistics
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import usable_device
from hgrn2.report.write import LayerGates, layer_gates, write_report
from hgrn2.settings import to_dict
from hgrn2.tasks.mqar.config import MQARRun
from hgrn2.tasks.mqar.task import MQARTask, Recall
from hgrn2.train.fitting import check_run
from hgrn2.train.metrics import read_metrics
from hgrn2.train.runs import prepare_folder
from hgrn2.train.runs import train as train_to_end
from hgrn2.train.same_run import refuse_other_run
from hgrn2.train.trainer import Trainer

GATE_SEQUENCES = 16  # of the longest test segment, over which gates are averaged


@dataclass(frozen=True)
class MQARResult:
    """What a run ended with."""

    folder: Path
    interrupted: bool
    step: int
    summary: dict[str, Any]
    """As in summary.json: parameters, state numbers, steps, seconds, and `held_out` with accuracy by test segment."""


def train_mqar(
    run: MQARRun, folder: Path, *, device: str = "auto", restart: bool = False, quiet: bool = False
) -> MQARResult:
    """Train in `folder`, or go on where an interrupted run stopped; arguments as in `train_language`."""
    place = usable_device(device)
    if place.type == "cpu":
        cpu.keep_freed_memory()
    check_run(run.model, run.train, place, min(one.length for one in run.data.train_segments))
    task = MQARTask(run, place)
    with owned(folder):
        return _train(run, task, folder, restart, quiet)


def _train(run: MQARRun, task: MQARTask, folder: Path, restart: bool, quiet: bool) -> MQARResult:
    """Train in a folder that no other process works in."""
    prepare_folder(folder, run, partial(refuse_other_run, folder, run), restart=restart)
    torch.manual_seed(run.train.seed)
    model = LanguageModel(run.model).to(task.device)
    model.backbone.set_recompute(run.train.recompute)
    trainer = Trainer(run, task, model, folder)
    train_to_end(trainer, trainer.view(quiet))
    if trainer.interrupted:
        return MQARResult(folder, True, trainer.step, {})
    return _finish(run, trainer, task, model)


def state_numbers(run: MQARRun) -> int:
    """Real numbers that the model carries behind the pairs of its longest training segment; attention carries more the
    longer the text is, the others always as many."""
    return state_bytes(run.model, tokens=run.train.sequence_length) // 4


def _finish(run: MQARRun, trainer: Trainer, task: MQARTask, model: LanguageModel) -> MQARResult:
    began, folder = time.perf_counter(), trainer.folder
    found = task.recall(model)
    summary = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_numbers": state_numbers(run),
        "steps": trainer.step,
        "tokens": trainer.step * task.tokens_per_step,
        "train_seconds": round(trainer.elapsed_s, 1),
        "eval_seconds": round(time.perf_counter() - began, 1),
        "held_out": {one.segment.name: _values(one) for one in found},
    }
    write_json(folder / "summary.json", summary)
    write_report(
        folder, config=to_dict(run), environment=read_json(folder / "environment.json"),
        metrics=read_metrics(folder / "metrics.jsonl"), summary=summary, samples=[],
        gates=_gates(run, model, task),
    )  # fmt: skip
    return MQARResult(folder, False, trainer.step, summary)


def _values(found: Recall) -> dict[str, Any]:
    segment = found.segment
    return {
        "length": segment.length, "pairs": segment.pairs, "examples": found.examples, "queries": found.queries,
        "accuracy": found.accuracy, "loss": found.loss,
    }  # fmt: skip


def _gates(run: MQARRun, model: LanguageModel, task: MQARTask) -> list[LayerGates] | None:
    """Forget gates on the longest test segment; None for mixers without any."""
    segments = run.data.test_segments
    place = max(range(len(segments)), key=lambda n: segments[n].length)
    tokens = torch.from_numpy(task.examples.test(place).tokens[:GATE_SEQUENCES]).to(task.device)
    return layer_gates(gate_statistics(model, tokens))
