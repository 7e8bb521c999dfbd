"""A run from beginning to end, whatever its task: folder, seed, model, training or resuming, measurements, report.

A task brings data, model, measurements and what its report shows (`hgrn2.train.task`). Several processes meet in
`train` and go through `_train_together`; what each of them has of the run, `hgrn2.train.parallel` says.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from hgrn2 import cpu
from hgrn2.environment import code_identity
from hgrn2.errors import UserError
from hgrn2.files import owned, read_json, write_json
from hgrn2.models.saved import Model, usable_device
from hgrn2.parallel.config import ParallelConfig
from hgrn2.settings import refuse, shown, to_dict
from hgrn2.train.branch import Branch, begin, find_branch
from hgrn2.train.config import Run, refuse_alone
from hgrn2.train.fitting import check_run
from hgrn2.train.float8 import check_float8
from hgrn2.train.metrics import read_metrics
from hgrn2.train.runs import prepare_folder
from hgrn2.train.task import Outcome, Task
from hgrn2.train.trackers import check_installed
from hgrn2.train.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    folder: Path
    interrupted: bool
    step: int
    summary: dict[str, Any]
    """As in summary.json: parameters, steps, tokens, epochs, seconds, `held_out` with the measurements by name, and
    what else the task tells; empty after Ctrl-C."""
    samples: tuple[Any, ...] = ()
    """Prompts and texts (`hgrn2.report.write.Sample`) of a language model."""
    first: bool = True
    """Whether this process has something to say: of several, the first one."""


def train(
    run: Run, opened: Callable[[torch.device], Task], folder: Path, *, device: str = "auto", restart: bool = False,
    quiet: bool = False, branch: Path | None = None,
) -> RunResult:  # fmt: skip
    """Train in `folder`, or go on where an interrupted run stopped.

    Args:
        run: what to train; a folder that holds another run is refused.
        opened: makes the task on its device; called once settings and memory have been looked at.
        device: auto, cpu, cuda, …
        restart: drop what the folder holds of an earlier run and begin anew.
        quiet: no live view.
        branch: a run folder or one of its checkpoints from which a new run begins (`hgrn2.train.branch`).

    Raises:
        UserError: settings that this kind of run does not read, a run that does not fit into memory, data that is
            missing, damaged or does not fit the model, a folder of others, a loss that is not finite.
    """
    held = _held(folder, restart)
    refuse_unread(run, run.unread, held)
    check_installed(run.train.trackers)
    parallel: ParallelConfig | None = getattr(run, "parallel", None)
    with ExitStack() as alive:
        ranks, place = _ranks(run, parallel, device, alive)
        check_float8(run.train.float8, place)
        if place.type == "cpu":
            cpu.keep_freed_memory()
        logits = "train.loss" not in run.unread
        check_run(run.model, run.train, place, run.shortest, trained=not run.frozen, logits=logits, parallel=parallel)
        task = opened(place)
        refuse_unread(run, task.unread, held)
        begun = (folder / "checkpoints").is_dir() and not restart  # such a run goes on where it stopped
        start = None if branch is None or begun else find_branch(run, task, branch)
        if ranks is None:
            with owned(folder):
                return _train(run, task, folder, start, restart=restart, quiet=quiet)
        return _train_together(run, task, folder, ranks, alive, start, restart=restart, quiet=quiet)


def _ranks(run: Run, parallel: ParallelConfig | None, device: str, alive: ExitStack) -> tuple[Any, torch.device]:
    """The other processes, if torchrun started any or one that may be all, and this one's device."""
    world = os.environ.get("WORLD_SIZE", "1")
    by_torchrun = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if parallel is None or (parallel.ranks == 1 and not (by_torchrun and world == "1")):
        refuse(
            world != "1",
            f"torchrun started {world} processes, but this run is for one: --set parallel.data={world} shares the "
            "batches of a language model among them",
        )
        return None, usable_device(device)
    refuse_alone(run.train)
    from hgrn2.train.parallel import started

    return alive.enter_context(started(parallel, device))


def _train_together(
    run: Run, task: Task, folder: Path, ranks: Any, alive: ExitStack, start: Branch | None, *, restart: bool,
    quiet: bool,
) -> RunResult:  # fmt: skip
    """As `_train`, in one of several processes. The first one owns and prepares the folder; when the others are done it
    goes on alone to measure the whole model."""
    from hgrn2.train import parallel

    parallel.refuse_strangers(
        ranks, settings=json.dumps(to_dict(run), sort_keys=True), data=task.data_identity, code=code_identity()
    )
    with owned(folder) if ranks.first else nullcontext():
        if ranks.first:
            _prepare(run, task, folder, start, restart)
        else:
            parallel.quiet()
        model = _model(run, task)
        ranks.spread(model, bfloat16=run.train.precision == "bfloat16")
        together = parallel.Together(ranks, run, model)
        together.all_of(True)  # the folder is ready
        trainer = Trainer(run, task, model, folder, together)
        train_on(trainer, quiet or not ranks.first)
        alive.close()
        if trainer.interrupted or not ranks.first:
            return RunResult(folder, trainer.interrupted, trainer.step, {}, first=ranks.first)
        trainer.model = together.whole(model, task, folder)
        return _ended(run, trainer)


def refuse_unread(run: Run, unread: Mapping[str, str], held: Any) -> None:
    """Refuse settings away from their defaults that the run would not read, each with its reason.

    Those that its folder `held` already are passed: earlier versions took them in silence, and their runs go on.
    """
    for name, reason in unread.items():
        value, default = _setting(run, name)
        if value != default and _found(held, name) != value:
            raise UserError(f"{name} is {shown(value)}, but {reason}: leave it at {shown(default)}")


def _setting(run: Run, name: str) -> tuple[Any, Any]:
    """The value of a dotted setting, and the default of its class."""
    *groups, last = name.split(".")
    value: Any = run
    for group in groups:
        value = getattr(value, group)
    return getattr(value, last), next(one.default for one in fields(value) if one.name == last)


def _held(folder: Path, restart: bool) -> Any:
    """The settings that the folder holds of an earlier call, as plain values; those of state tuning lie deeper."""
    path = folder / "config.json"
    values = {} if restart or not path.is_file() else read_json(path, dict)
    return values.get("settings", values)


def _found(held: Any, name: str) -> Any:
    """The value of a dotted setting among plain values, None where there is none."""
    for part in name.split("."):
        held = held.get(part) if isinstance(held, dict) else None
    return held


def _train(run: Run, task: Task, folder: Path, start: Branch | None, *, restart: bool, quiet: bool) -> RunResult:
    """Train in a folder that no other process works in."""
    _prepare(run, task, folder, start, restart)
    trainer = Trainer(run, task, _model(run, task), folder)
    train_on(trainer, quiet)
    if trainer.interrupted:
        return RunResult(folder, True, trainer.step, {})
    return _ended(run, trainer)


def _prepare(run: Run, task: Task, folder: Path, start: Branch | None, restart: bool) -> None:
    prepare_folder(folder, run, lambda saved: task.refuse_other(folder, saved), restart=restart, assets=task.assets)
    task.save_assets(folder)
    if start is not None:
        begin(folder, start)


def _ended(run: Run, trainer: Trainer) -> RunResult:
    """Measure, and write what there is to say of the run."""
    outcome, summary = _measured(trainer)
    _finish(run, trainer.folder, outcome, summary)
    return RunResult(trainer.folder, False, trainer.step, summary, samples=outcome.samples)


def _model(run: Run, task: Task) -> Model:
    """The task's model on the run's device, with the first weights that the seed decides."""
    torch.manual_seed(run.train.seed)
    model = task.model()
    model.set_recompute(run.train.recompute)
    return model


def train_on(trainer: Trainer, quiet: bool) -> None:
    """Go on from the newest whole checkpoint of the trainer's folder, if there is one, to the end or to Ctrl-C."""
    with trainer.view(quiet) as view:
        newest, problems = trainer.processes.newest(trainer.folder, trainer.model, trainer.needs)
        for problem in problems:
            view.event(problem)
        if newest is None and problems:
            raise UserError(f"{problems[0]}; no whole checkpoint is left, use --restart to begin anew")
        if newest is not None:
            trainer.resume(newest)
            view.event(f"resumed from step {trainer.step}", step=trainer.step, elapsed_s=trainer.elapsed_s)
        trainer.fit(view)
        view.finish("interrupted: a checkpoint was saved" if trainer.interrupted else "trained")


def _measured(trainer: Trainer) -> tuple[Outcome, dict[str, Any]]:
    """What the trained model came to, and the summary of its run."""
    task, began = trainer.task, time.perf_counter()
    # Takes uncompiled blocks: compiling them once more, for measurements, takes longer than it saves.
    with torch.compiler.set_stance("force_eager"), trainer.plain():
        outcome = task.finish(trainer.model, trainer.folder)
    counted = {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.step,
        "tokens": trainer.step * task.tokens_per_step,
        "epochs": round(task.epochs(trainer.step), 2),
        "train_seconds": round(trainer.elapsed_s, 1),
        "eval_seconds": round(time.perf_counter() - began, 1),
    }
    if shares := task.shares(trainer.step):
        counted["mixture"] = shares
    return outcome, counted | outcome.facts | {"held_out": outcome.held_out}


def _finish(run: Run, folder: Path, outcome: Outcome, summary: dict[str, Any]) -> None:
    """Write summary.json and report.html."""
    write_json(folder / "summary.json", summary)
    outcome.report(
        folder, config=to_dict(run), environment=read_json(folder / "environment.json"),
        metrics=read_metrics(folder / "metrics.jsonl"), summary=summary,
    )  # fmt: skip
