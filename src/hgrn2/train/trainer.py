"""The training loop: one step, and what happens between steps. Readable from top to bottom.

Resuming is exact: the data of a step depends on (seed, step) only, and weights (the best and averaged ones too),
optimiser states, carried states, random generators and the guard come back bit for bit. With a time budget the schedule
follows the clock, and runs are not comparable so.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hgrn2.models.saved import Model
from hgrn2.parallel.pieces import local
from hgrn2.settings import refuse, to_dict
from hgrn2.train import checkpoint
from hgrn2.train.alone import ALONE, Alone
from hgrn2.train.average import WeightAverage
from hgrn2.train.best import BestWeights
from hgrn2.train.carried import CarriedStates
from hgrn2.train.checkpoint import Checkpoint
from hgrn2.train.config import Run
from hgrn2.train.float8 import Float8Maps
from hgrn2.train.graphs import StepGraphs
from hgrn2.train.guard import Diverged, LossGuard, check_tensors
from hgrn2.train.metrics import MetricsWriter, NoMetrics
from hgrn2.train.optim import Optimizers
from hgrn2.train.profiling import StepProfiler
from hgrn2.train.schedule import lr_share, progress_of, total_steps
from hgrn2.train.signals import stop_signals
from hgrn2.train.speed import Meter
from hgrn2.train.task import Task
from hgrn2.train.trackers import Start, Trackers, run_id
from hgrn2.train.view import TrainView

MEASUREMENTS = 5
"""On held-out data, at least so many in a run, unless `eval_every` is 0."""
SHOWN_STEPS = 20
"""Steps whose mean loss is shown while a run goes."""


class _Step(NamedTuple):
    loss: torch.Tensor
    grad_norm: torch.Tensor
    """Before clipping."""
    lr_share: float
    """Of the peak learning rate."""


class Trainer:
    """Trains `model` on `task` and keeps the run folder: metrics.jsonl and checkpoints/."""

    def __init__(self, run: Run, task: Task, model: Model, folder: Path, processes: Alone = ALONE) -> None:
        self.processes = processes
        self.run, self.task, self.model, self.folder = run, task, model, folder
        self.optimizers = Optimizers(model, run.optim)
        self.guard = LossGuard(run.train.spike)
        self.average = WeightAverage(model, run.train.average) if run.train.average else None
        self.best = BestWeights(model, processes.all_of) if run.train.keep_best else None
        self.total_steps = total_steps(run.train, task.epochs)
        self.step = 0
        self.elapsed_s = 0.0
        self.interrupted = self._asked = False
        self._clock = time.perf_counter()
        self._saved: Path | None = None
        self._now: _Step | None = None  # the step just taken; None before the first of this process
        self._mark = (0, 0.0)  # step and seconds of the last record
        self._measured = (0, 0.0)  # step and progress of the last measurement
        self._recent: deque[torch.Tensor] = deque(maxlen=SHOWN_STEPS)  # losses, to be shown
        self._loss = torch.compile(task.loss) if run.train.compile else task.loss
        self.states = CarriedStates(run.train.accumulate) if task.carries else None
        self.float8 = None if run.train.float8 == "none" else Float8Maps(model, run.train.float8)
        if run.train.compile_blocks:
            processes.compile_blocks(model)
        self._backward: Callable[[Any], torch.Tensor] = self._part
        if run.train.graphs and next(model.parameters()).device.type == "cuda":
            self._backward = StepGraphs(self._part, model.parameters())
            self.optimizers.keep_gradients = True

    def resume(self, found: Checkpoint) -> None:
        """Continue from a checkpoint that was read; one of a run on other data is a `UserError`."""
        known = found.trainer.get("data")
        other = known not in (None, self.task.data_identity)
        refuse(other, f"{self.folder} was trained on other data than now lies in its place: give the data that it had, "
                      "--restart to begin it anew, or another --out")  # fmt: skip
        checkpoint.apply(found, self.model)
        tensors, values = found.optimizer, found.trainer
        if self.best is not None:
            self.best.load_state(values["best"])
            tensors = self.best.load(tensors)
        if self.average is not None:
            tensors = self.average.load(tensors)
        self.optimizers.load_tensors(tensors)
        if self.states is not None:
            self.states.load(self.model, self.processes.own_rows(found.states), found.folder)
        self.guard.load(values["guard"])
        self.step, self.elapsed_s, self._saved = values["step"], values["elapsed_s"], found.folder
        self._mark = (self.step, self.elapsed_s)
        self._measured = (self.step, self._progress())

    @property
    def needs(self) -> tuple[str, ...]:
        """Values of trainer.json without which this run cannot go on, beside those of every run."""
        return () if self.best is None else ("best",)

    def view(self, quiet: bool = False) -> TrainView:
        """What shows this run in the terminal."""
        config = self.run.train
        return TrainView(
            f"hgrn2 {self.folder.name}", total_steps=self.total_steps, budget_s=config.budget_s or None,
            parameters=self.processes.parameters(self.model), epochs=self.task.epochs, quiet=quiet,
        )  # fmt: skip

    def fit(self, view: TrainView) -> None:
        """Train to the end, or to Ctrl-C: then a checkpoint is written and `interrupted` is set."""
        config = self.run.train
        device = next(self.model.parameters()).device
        self._meter = Meter(device, config.precision, self.task.flops_per_token, self.processes.count)
        self._clock = time.perf_counter() - self.elapsed_s
        kind = MetricsWriter if self.processes.first else NoMetrics
        with (
            kind(self.folder / "metrics.jsonl", resume_step=self.step) as writer,
            self._tracked(writer, view) as self._trackers,
            stop_signals(self._interrupt),
        ):
            self.model.train()
            profiler = StepProfiler(config.profile if self.processes.first else (), self.folder, device)
            while not self.finished and not self.interrupted:
                with profiler.around(self.step + 1):
                    self._train_step()
                self._told_profile(profiler, writer, view)
                if self._due(config.log_every) or self.finished:
                    self._log(writer, view)
                elif view.wants_step():
                    self._show(view)
                if self._measurement_due() and not self.finished:
                    self._evaluate(writer, view)
                if self._due(config.save_every) and not self.finished:
                    self.save()
            if not self.interrupted and self._now is not None and self._measured[0] != self.step:
                self._evaluate(writer, view)
            self.save()
            self.processes.wait()
        if not self.interrupted:
            self._hand_over()

    @contextmanager
    def _tracked(self, writer: MetricsWriter, view: TrainView) -> Iterator[Trackers]:
        """The trackers of the run, in the first process; what goes wrong with one is told as an event."""
        names = self.run.train.trackers if self.processes.first else ()
        start = Start(
            self.folder, self.run.train.tracker_project, run_id(self.folder) if names else "", to_dict(self.run),
            self.step,
        )  # fmt: skip
        trackers = Trackers(names, start, lambda text: self._event(writer, view, text))
        try:
            yield trackers
        finally:
            trackers.close()

    def _event(self, writer: MetricsWriter, view: TrainView, text: str) -> None:
        view.update(writer.event(step=self.step, elapsed_s=self.elapsed_s, text=text))

    def _told_profile(self, profiler: StepProfiler, writer: MetricsWriter, view: TrainView) -> None:
        path = profiler.finished(self.step, ending=self.finished or self.interrupted)
        if path is not None:
            self._event(writer, view, f"the trace of {path.name.partition('.')[0]} lies in {path.parent.name}/")

    def _interrupt(self) -> None:
        self._asked = True

    def _agree(self) -> None:
        """Take the time, and hear whether anyone was asked to stop: what follows from both is the same everywhere."""
        seconds = time.perf_counter() - self._clock
        self.interrupted, self.elapsed_s = self.processes.agreed(self._asked, seconds)

    @property
    def finished(self) -> bool:
        """Whether steps, passes over the data or the time budget are used up, or nothing better has come for long."""
        config = self.run.train
        late = bool(config.budget_s) and self.elapsed_s >= config.budget_s
        waited = self.best.waited if self.best is not None else 0
        return self.step >= self.total_steps or late or bool(config.patience and waited >= config.patience)

    def save(self) -> None:
        """Write a checkpoint of this moment, unless the run has gone wrong, and drop the oldest."""
        self._check_good()
        values: dict[str, Any] = {
            "elapsed_s": self.elapsed_s, "guard": self.guard.state(), "data": self.task.data_identity,
        }  # fmt: skip
        if self.best is not None:
            values["best"] = self.best.state()
        with ExitStack() as stack:
            tensors = self.optimizers.tensors() | stack.enter_context(self._averaged())
            if self.best is not None:
                tensors |= stack.enter_context(self.best.in_place())
            if self.states is not None:
                tensors |= self.processes.all_rows(self.states.tensors(self.model))
            keep = self.run.train.keep
            self._saved = self.processes.save(self.folder, self.step, self.model, tensors, values, keep)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, with the averaged weights where there are some, in the precision that the steps have:
        float32 would build and run other kernels."""
        with self._averaged(), self._reading(), self.processes.measuring(self.model):
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        precision = self._precision(next(self.model.parameters()).device.type)
        self.model.eval()
        try:
            # Takes uncompiled blocks: compiling them a second time, for evaluation, takes longer than it saves.
            with torch.inference_mode(), precision, torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.model.train()

    def _check_good(self) -> None:
        """Raise `Diverged` where the step just taken left anything that is not finite: the loss before its update,
        weights and optimiser states after it, or the loss that these weights have on the data of the next step."""
        if self._now is None:
            return
        last_good = self._last_good()
        self.guard.check_finite(self.step, float(self._now.loss), float(self._now.grad_norm), last_good)
        weights, wrong = {name: local(value) for name, value in self.model.state_dict().items()}, None
        try:
            check_tensors(self.step, weights, self.optimizers.tensors(), last_good)
        except Diverged as error:
            wrong = error
        if not self.processes.all_of(wrong is None):  # every process stops, though one alone may know why
            raise wrong or Diverged(f"the update of step {self.step} left wrong numbers elsewhere; {last_good}")
        with self._reading():
            batch = self.processes.batch(self.task, self.step, 0, self.run.train.accumulate)
            if self.states is None:
                loss = self.task.loss(self.model, batch)
            else:
                loss, _ = self.task.loss_from(self.model, batch, self.states.next)
            loss = float(self.processes.mean(loss))
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss after the update of step {self.step} is {loss}; {last_good}; try a lower learning rate"
            )

    @torch.no_grad()
    def _hand_over(self) -> None:
        """At the end the model has the weights that were saved as its own."""
        for other in (self.average, self.best if self.best is not None and self.best.step else None):
            if other is not None:
                other.hand_over()
        self.average = None

    def plain(self) -> AbstractContextManager[None]:
        """The model as it will be loaded again: float8 maps are what they were before."""
        return nullcontext() if self.float8 is None else self.float8.undone()

    def _averaged(self) -> AbstractContextManager[dict[str, torch.Tensor]]:
        return nullcontext({}) if self.average is None else self.average.in_place()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _measurement_due(self) -> bool:
        """Every `eval_every` steps, and sooner where a run would end with fewer than five measurements."""
        every, (_, progress) = self.run.train.eval_every, self._measured
        if every and self.run.train.budget_s and self._progress() - progress >= 1 / MEASUREMENTS:
            return True
        return every > 0 and self.step % min(every, max(1, self.total_steps // MEASUREMENTS)) == 0

    def _progress(self) -> float:
        return progress_of(self.run.train, self.total_steps, self.step, self.elapsed_s)

    def _precision(self, device: str) -> torch.autocast:
        return torch.autocast(device, torch.bfloat16, enabled=self.run.train.precision == "bfloat16")

    def _part(self, batch: Any) -> torch.Tensor:
        """Forward and backward of one accumulation part; its share of the loss."""
        with self._precision(batch[0].device.type):
            loss = self._loss_from(batch) / self.run.train.accumulate
        loss.backward()
        return loss.detach()

    def _loss_from(self, batch: Any) -> torch.Tensor:
        """The loss of the part that comes next; where states are carried, its own are handed on."""
        if self.states is None:
            return self._loss(self.model, batch)
        loss, state = self.task.loss_from(self.model, batch, self.states.next)
        self.states.took(state)
        return loss

    def _train_step(self) -> None:
        """One optimiser step over all accumulation parts."""
        config = self.run
        share = lr_share(config.optim, self.step, self._progress(), by_clock=bool(config.train.budget_s))
        self.optimizers.set_share(share)
        parts, total = config.train.accumulate, torch.zeros(())
        self.processes.begin(self.step)
        for part in range(parts):
            loss = self._backward(self.processes.batch(self.task, self.step, part, parts))
            total = total.to(loss.device) + loss
        total = self.processes.mean(total)
        norm = self.processes.clip(self.model, config.optim.clip or float("inf"))
        self.optimizers.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        self._agree()
        self._now = _Step(total, norm, share)
        self._recent.append(total)

    def _show(self, view: TrainView) -> None:
        """A step that is not recorded, so that a slow machine's display does not wait for the next record."""
        view.step(
            step=self.step, tokens=self.step * self.task.tokens_per_step, elapsed_s=self.elapsed_s,
            loss=self._recent_loss(), steps=len(self._recent), tokens_per_s=self._speed(),
        )  # fmt: skip

    def _recent_loss(self) -> float:
        return float(torch.stack(list(self._recent)).mean())

    def _speed(self) -> float:
        """Tokens/s since the last record, pauses for measuring left out."""
        since_step, since_s = self._mark
        seconds = max(time.perf_counter() - self._clock - since_s, 1e-9)
        return (self.step - since_step) * self.task.tokens_per_step / seconds

    def _log(self, writer: MetricsWriter, view: TrainView) -> None:
        """Record the step at hand."""
        assert self._now is not None
        self.guard.check(self.step, float(self._now.loss), float(self._now.grad_norm), self._last_good())
        speed = self._speed()
        record = writer.step(
            step=self.step, tokens=self.step * self.task.tokens_per_step, loss=self._now.loss,
            grad_norm=self._now.grad_norm, lr=self._now.lr_share * self.run.optim.lr, tokens_per_s=speed,
            mfu=self._meter.mfu(speed), memory_bytes=self._meter.memory_bytes(), elapsed_s=self.elapsed_s,
        )  # fmt: skip
        view.update(record, recent=(self._recent_loss(), len(self._recent)))
        self._trackers.take(record)
        self._mark = (self.step, time.perf_counter() - self._clock)

    def _evaluate(self, writer: MetricsWriter, view: TrainView) -> None:
        began = time.perf_counter()
        with self.evaluating():
            found: dict[str, Any] = self.task.evaluate(self.model)
        found["loss"] = self.processes.first_says(found["loss"])
        if self.best is not None:
            with self._averaged():
                self.best.measured(self.step, found["loss"])
        self._agree()
        self._measured = (self.step, self._progress())
        tokens = self.step * self.task.tokens_per_step
        record = writer.eval(step=self.step, tokens=tokens, elapsed_s=self.elapsed_s, **found)
        view.update(record)
        self._trackers.take(record)
        since_step, since_s = self._mark
        self._mark = (since_step, since_s + time.perf_counter() - began)

    def _last_good(self) -> str:
        return "nothing was saved yet" if self._saved is None else f"the last good checkpoint is {self._saved.name}"
