"""One run of a comparison, from its settings to its row; an interrupted one goes on from its checkpoint."""

import gc
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hgrn2 import cpu
from hgrn2.data.corpus import Corpus
from hgrn2.eval.positions import by_position, pieces
from hgrn2.files import owned
from hgrn2.models.count import parameters, state_bytes
from hgrn2.models.language import LanguageModel
from hgrn2.rows import Row, measurement
from hgrn2.study.applications import monitor_corpora
from hgrn2.study.arms import LENGTHS, run_of
from hgrn2.study.protocol import APPLICATIONS, Case, Study, common
from hgrn2.study.reading import monitor, stream
from hgrn2.study.record import BENCH, case_of, keep
from hgrn2.tasks.lm.task import LanguageTask, open_corpora
from hgrn2.train.config import DataConfig, RunConfig
from hgrn2.train.fitting import check_run
from hgrn2.train.guard import Diverged
from hgrn2.train.metrics import read_metrics
from hgrn2.train.run import train_on
from hgrn2.train.runs import prepare_folder
from hgrn2.train.trainer import Trainer

CURVE = 64
"""Points of a loss curve in a row; the run folder has all."""
TEXTS = 64
"""Texts of 16 T tokens that the study of lengths reads, at most."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the runs of a study are trained: what every process of it must know beside the study."""

    out: Path
    device: torch.device
    precision: str
    corpus: str
    """Identity of the training text."""
    vocab_size: int
    deadline: float = math.inf
    """`time.time()` at which a run stops and saves a checkpoint."""
    at_once: int = 1
    """Runs that share the device."""
    quiet: bool = False

    def common(self, study: Study) -> dict[str, Any]:
        """What all rows of the study share."""
        return common(study, self.corpus, self.precision)


class _Timed(Trainer):
    """Stops at a deadline. Only a run that is to go on leaves a checkpoint: what is compared is its loss."""

    deadline = math.inf

    def _train_step(self) -> None:
        super()._train_step()
        if time.time() > self.deadline and not self.finished:
            self._interrupt()

    def save(self) -> None:
        if self.finished and not self.interrupted:
            self._check_good()
        else:
            super().save()


def find_place(study: Study, out: Path, device: torch.device, *, at_once: int = 1) -> Place:
    """Look at device and data of a study before anything is trained.

    Raises:
        UserError: no such corpus; texts too short for the study of lengths.
    """
    train, valid = corpora(study)
    if study.study == "length":
        pieces(valid, LENGTHS * study.length)
    precision = study.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return Place(
        out=out, device=device, precision=precision, corpus=train.identity()[:12], vocab_size=train.vocab_size,
        at_once=at_once,
    )  # fmt: skip


def corpora(study: Study) -> tuple[Corpus, Corpus]:
    """Training and held-out tokens."""
    if study.study == "monitor":
        return monitor_corpora(study)
    train, valid = open_corpora(DataConfig(source=study.source, reset_at_documents=study.reset_at_documents))
    assert isinstance(train, Corpus)
    return train, valid


def train_case(study: Study, case: Case, place: Place) -> Row | None:
    """Train and measure; None where the run was interrupted, and the same call then goes on from the checkpoint.

    Raises:
        UserError: settings or data that do not fit, a folder with another run.
    """
    if place.device.type == "cpu":
        cpu.keep_freed_memory()
    run = run_of(
        study, case, vocab_size=place.vocab_size, precision=place.precision, on_gpu=place.device.type == "cuda"
    )
    check_run(run.model, run.train, place.device, run.train.sequence_length)
    train, valid = corpora(study)
    task = LanguageTask(run, train, valid, place.device)
    folder = place.out / "runs" / case.folder
    try:
        with owned(folder):
            found = _train(study, case, task, folder, place)
            if found is None:
                return None
            loss, details = found
            details |= _described(run, task, place)
            row = measurement(BENCH, case_of(place.common(study), case), case.arm.subject, "torch", [loss],
                              "nats/token", details)  # fmt: skip
            keep(folder, row)
            return row
    finally:
        gc.collect()
        if place.device.type == "cuda":
            torch.cuda.empty_cache()


def _train(
    study: Study, case: Case, task: LanguageTask, folder: Path, place: Place
) -> tuple[float, dict[str, Any]] | None:
    """Held-out loss and what else was measured; a run that diverges counts as a guess among all ids."""
    run = task.run
    prepare_folder(folder, run, lambda saved: task.refuse_other(folder, saved), restart=False)
    torch.manual_seed(run.train.seed)
    model = task.model()
    trainer = _Timed(run, task, model, folder)
    trainer.deadline = place.deadline
    try:
        train_on(trainer, place.quiet)
    except Diverged as error:
        return math.log(task.train.vocab_size), {"diverged": str(error), **_curve(folder)}
    if trainer.interrupted:
        return None
    found = _measured(trainer, task, model)
    details = {"bits_per_byte": found["bits_per_byte"], **_curve(folder)}
    if study.study == "length":
        details["by_position"] = _by_position(study, trainer, task, model)
    if study.study in APPLICATIONS and case.tokens == (study.final or study.sweep):
        with trainer.evaluating():
            found_by = stream(model, task.valid) if study.study == "stream" else monitor(model, study)
        details[study.study] = found_by
    return found["loss"], details


def _measured(trainer: Trainer, task: LanguageTask, model: LanguageModel) -> dict[str, Any]:
    """The measurement with which the run ended; a run stopped after its last step comes back without one."""
    records = read_metrics(trainer.folder / "metrics.jsonl")
    found = next((record for record in reversed(records) if record["kind"] == "eval"), None)
    if found is not None:
        return found
    with trainer.evaluating():
        return task.evaluate(model)


def _by_position(study: Study, trainer: Trainer, task: LanguageTask, model: LanguageModel) -> list[list[float]]:
    """[first position, end, nats/token] of buckets up to 16 times the training length."""
    length = LENGTHS * study.length
    starts = pieces(task.valid, length, TEXTS)
    with trainer.evaluating():
        found = by_position(model, task.valid, starts, length)
    return [[one.first, one.stop, round(one.nats_per_token, 5)] for one in found]


def _curve(folder: Path) -> dict[str, Any]:
    """Training loss over tokens, each point the mean of the records up to it, and speed."""
    steps = [one for one in read_metrics(folder / "metrics.jsonl") if one["kind"] == "step" and one["loss"] is not None]
    if not steps:
        return {"curve": []}
    size = math.ceil(len(steps) / CURVE)
    groups = [steps[at : at + size] for at in range(0, len(steps), size)]
    curve = [[group[-1]["tokens"], round(statistics.fmean(one["loss"] for one in group), 4)] for group in groups]
    later = steps[len(steps) // 4 :]  # compilation is behind them
    return {
        "curve": curve, "seconds": round(steps[-1]["elapsed_s"], 1),
        "tokens_per_s": round(statistics.median(one["tokens_per_s"] for one in later)),
    }  # fmt: skip


def _described(run: RunConfig, task: LanguageTask, place: Place) -> dict[str, Any]:
    """The model in numbers, and what it was trained on."""
    count, mixer = parameters(run.model), run.model.mixer
    return {
        "parameters": count.total, "non_embedding": count.non_embedding, "width": run.model.width,
        "layers": run.model.layers, "glu_width": run.model.glu_width, "head_size": mixer.head_size,
        "conv_width": mixer.conv_width, "state_bytes": state_bytes(run.model, tokens=run.train.sequence_length),
        "data": Path(run.data.source).name, "data_tokens": task.train.n_tokens,
        "held_out_tokens": min(task.valid.n_tokens, run.train.eval_tokens) - 1, "vocab_size": task.train.vocab_size,
        "epochs": round(task.epochs(run.train.steps), 3), "at_once": place.at_once, "device": place.device.type,
    }  # fmt: skip
