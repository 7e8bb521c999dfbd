"""The training loop: one step, and what happens between steps. Readable from top to bottom.

Resuming is exact: the data of a step depends on (seed, step) only, and weights, optimiser states, random generators and
the guard come back bit for bit. With a time budget the schedule follows the clock, and runs are not comparable so.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from hgrn2.errors import UserError
from hgrn2.models.saved import Model
from hgrn2.train import checkpoint
from hgrn2.train.average import WeightAverage
from hgrn2.train.config import Run
from hgrn2.train.graphs import StepGraphs
from hgrn2.train.guard import LossGuard
from hgrn2.train.metrics import MetricsWriter
from hgrn2.train.optim import Optimizers
from hgrn2.train.schedule import lr_share
from hgrn2.train.task import Task
from hgrn2.train.view import TrainView


class _Step(NamedTuple):
    loss: torch.Tensor
    grad_norm: torch.Tensor
    """Before clipping."""
    lr_share: float
    """Of the peak learning rate."""


class Trainer:
    """Trains `model` on `task` and keeps the run folder: metrics.jsonl and checkpoints/."""

    def __init__(self, run: Run, task: Task, model: Model, folder: Path) -> None:
        self.run, self.task, self.model, self.folder = run, task, model, folder
        self.optimizers = Optimizers(model, run.optim)
        self.guard = LossGuard(run.train.spike)
        self.average = WeightAverage(model, run.train.average) if run.train.average else None
        self.step = 0
        self.elapsed_s = 0.0
        self.interrupted = False
        self._clock = time.perf_counter()
        self._saved: Path | None = None
        self._now: _Step | None = None  # the step just taken; None before the first of this process
        self._mark = (0, 0.0)  # step and seconds of the last record
        self._loss = torch.compile(task.loss) if run.train.compile else task.loss
        if run.train.compile_blocks:
            compile_blocks(model)
        self._backward: Callable[[Any], torch.Tensor] = self._part
        if run.train.graphs and next(model.parameters()).device.type == "cuda":
            self._backward = StepGraphs(self._part, model.parameters())
            self.optimizers.keep_gradients = True

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder."""
        tensors, values = checkpoint.load(folder, self.model)
        if self.average is not None:
            tensors = self.average.load(tensors)
        self.optimizers.load_tensors(tensors)
        self.guard.load(values["guard"])
        self.step, self.elapsed_s, self._saved = values["step"], values["elapsed_s"], folder
        self._mark = (self.step, self.elapsed_s)

    def fit(self, view: TrainView) -> None:
        """Train to the end, or to Ctrl-C: then a checkpoint is written and `interrupted` is set."""
        config = self.run.train
        self._clock = time.perf_counter() - self.elapsed_s
        with MetricsWriter(self.folder / "metrics.jsonl", resume_step=self.step) as writer, _stop_signals(self):
            self.model.train()
            while not self.finished and not self.interrupted:
                self._train_step()
                if self._due(config.log_every) or self.finished:
                    self._log(writer, view)
                if self._due(config.eval_every) and not self.finished:
                    self._evaluate(writer, view)
                if self._due(config.save_every) and not self.finished:
                    self.save()
            self.save()
            if not self.interrupted and self._now is not None:
                self._evaluate(writer, view)

    @property
    def finished(self) -> bool:
        """Whether the steps or the time budget are used up."""
        budget = self.run.train.budget_s
        return self.step >= self.run.train.steps or bool(budget and self.elapsed_s >= budget)

    def save(self) -> None:
        """Write a checkpoint of this moment, unless the run has gone wrong, and drop the oldest."""
        if self._now is not None:
            self.guard.check_finite(self.step, float(self._now.loss), float(self._now.grad_norm), self._last_good())
        values = {"elapsed_s": self.elapsed_s, "guard": self.guard.state()}
        with self._averaged() as behind:
            tensors = self.optimizers.tensors() | behind
            self._saved = checkpoint.save(self.folder, self.step, self.model, tensors, values)
        checkpoint.retain(self.folder, self.run.train.keep)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, with the averaged weights where there are some, in the precision that the steps have:
        float32 would build and run other kernels."""
        self.model.eval()
        precision = self._precision(next(self.model.parameters()).device.type)
        # Measuring takes uncompiled blocks: compiling them a second time, for evaluation, takes longer than it saves.
        with torch.inference_mode(), precision, self._averaged(), torch.compiler.set_stance("force_eager"):
            yield
        self.model.train()

    def _averaged(self) -> AbstractContextManager[dict[str, torch.Tensor]]:
        return nullcontext({}) if self.average is None else self.average.in_place()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _progress(self) -> float:
        by_steps = self.step / self.run.train.steps
        budget = self.run.train.budget_s
        return max(by_steps, self.elapsed_s / budget) if budget else by_steps

    def _precision(self, device: str) -> torch.autocast:
        return torch.autocast(device, torch.bfloat16, enabled=self.run.train.precision == "bfloat16")

    def _part(self, batch: Any) -> torch.Tensor:
        """Forward and backward of one accumulation part; its share of the loss."""
        with self._precision(batch[0].device.type):
            loss = self._loss(self.model, batch) / self.run.train.accumulate
        loss.backward()
        return loss.detach()

    def _train_step(self) -> None:
        """One optimiser step over all accumulation parts."""
        config = self.run
        share = lr_share(config.optim, self.step, self._progress())
        self.optimizers.set_share(share)
        parts, total = config.train.accumulate, torch.zeros(())
        for part in range(parts):
            loss = self._backward(self.task.batch(self.step, part, parts))
            total = total.to(loss.device) + loss
        limit = config.optim.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizers.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        self.elapsed_s = time.perf_counter() - self._clock
        self._now = _Step(total, norm, share)

    def _log(self, writer: MetricsWriter, view: TrainView) -> None:
        """Record the step at hand; speed is the mean since the last record, pauses for measuring left out."""
        assert self._now is not None
        self.guard.check(self.step, float(self._now.loss), float(self._now.grad_norm), self._last_good())
        since_step, since_s = self._mark
        seconds = max(time.perf_counter() - self._clock - since_s, 1e-9)
        tokens = self.task.tokens_per_step
        view.update(writer.step(
            step=self.step, tokens=self.step * tokens, loss=self._now.loss, grad_norm=self._now.grad_norm,
            lr=self._now.lr_share * self.run.optim.lr, tokens_per_s=(self.step - since_step) * tokens / seconds,
            elapsed_s=self.elapsed_s,
        ))  # fmt: skip
        self._mark = (self.step, time.perf_counter() - self._clock)

    def _evaluate(self, writer: MetricsWriter, view: TrainView) -> None:
        began = time.perf_counter()
        with self.evaluating():
            found: dict[str, Any] = self.task.evaluate(self.model)
        self.elapsed_s = time.perf_counter() - self._clock
        tokens = self.step * self.task.tokens_per_step
        view.update(writer.eval(step=self.step, tokens=tokens, elapsed_s=self.elapsed_s, **found))
        since_step, since_s = self._mark
        self._mark = (since_step, since_s + time.perf_counter() - began)

    def _last_good(self) -> str:
        return "nothing was saved yet" if self._saved is None else f"the last good checkpoint is {self._saved.name}"


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a model's backbone in place; a model without one is a `UserError`."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise UserError("compile_blocks needs a model with blocks of ours; use train.compile for others")
    # Ids come in batches of many lengths; pictures have one size, for which fixed shapes are built sooner.
    dynamic = True if getattr(model.config, "vocab_size", 0) else None
    for block in backbone.blocks:
        block.compile(dynamic=dynamic)


@contextmanager
def _stop_signals(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the loop after the step at hand, with a checkpoint; the second one kills."""

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.interrupted = True
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before: dict[int, Any] = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            before[signum] = signal.signal(signum, stop)
    except ValueError:  # not the main thread: whoever runs it there handles signals
        pass
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def refuse_other_run(folder: Path, run: Run, saved: Run) -> None:
    """A resumed run must be the run that was started; only its length and how often it reports may change."""
    parts = [(name, getattr(run, name), getattr(saved, name)) for name in ("kind", "model", "data", "optim")]
    for name in ("seed", "sequence_length", "batch_size", "precision"):
        parts.append((f"train.{name}", getattr(run.train, name), getattr(saved.train, name)))
    for name, mine, theirs in parts:
        if mine != theirs:
            raise UserError(f"{folder} holds a run with another {name} configuration; use another --out or --restart")
