"""A run that begins at a checkpoint of another one: the same steps so far, another end.

A long run with a learning rate that stays (wsd) can so be ended several times: each branch goes on from one of its
checkpoints, on the same data in the same order, and lets the rate fall.
"""

import math
import shutil
from pathlib import Path
from typing import NamedTuple

from hgrn2.files import atomic_folder, read_bytes, read_json, reported, write_bytes
from hgrn2.models.saved import find_model
from hgrn2.settings import from_dict, refuse
from hgrn2.train import checkpoint
from hgrn2.train.config import Run
from hgrn2.train.metrics import MetricsWriter
from hgrn2.train.same_run import compared, refuse_different
from hgrn2.train.schedule import lr_share, progress_of, total_steps
from hgrn2.train.task import Task

ENDING = ("schedule", "decay_share", "decay_shape", "final_lr_ratio", "warmup_share")
"""Settings of the optimiser that may differ in a branch, as long as the rate is the same where it begins."""


class Branch(NamedTuple):
    """Where a run begins."""

    run: Path
    """Folder of the run that is branched from."""
    checkpoint: Path
    step: int
    elapsed_s: float


def find_branch(run: Run, task: Task, source: Path) -> Branch:
    """The checkpoint that a run is to begin from; nothing is written.

    Args:
        source: a run folder (its newest checkpoint), or one of its checkpoints.

    Raises:
        UserError: no checkpoint of a run there or a damaged one, other settings than the run's but for its length and
            the end of its schedule, nothing left to train, or a learning rate that would jump.
    """
    found = find_model(source)
    refuse(found.run is None or found.step is None, f"{source} is no checkpoint of a run: a branch begins from one")
    assert found.run is not None
    assert found.step is not None
    saved = from_dict(type(run), read_json(found.run / "config.json", dict), str(found.run / "config.json"))
    mine, theirs = compared(run), compared(saved)
    for one in (mine, theirs):
        one["optim"] = {name: value for name, value in one["optim"].items() if name not in ENDING}
    hint = "a branch may have another length and another end of the schedule alone"
    refuse_different(found.run, mine, theirs, hint=hint)
    checkpoint.verify(found.folder)
    elapsed = float(read_json(found.folder / "trainer.json", dict)["elapsed_s"])
    _refuse_jump(run, saved, task, found.step, elapsed)
    return Branch(found.run, found.folder, found.step, elapsed)


def _refuse_jump(run: Run, saved: Run, task: Task, step: int, elapsed_s: float) -> None:
    """The rate of the step after the checkpoint must be what it would have been there."""
    total = total_steps(run.train, task.epochs)
    over = step >= total or 0 < run.train.budget_s <= elapsed_s
    refuse(over, f"step {step} is the end of this run already: a branch needs more train.steps or train.budget_s")
    shares = []
    for one in (run, saved):
        progress = progress_of(one.train, total_steps(one.train, task.epochs), step, elapsed_s)
        shares.append(lr_share(one.optim, step, progress, by_clock=bool(one.train.budget_s)))
    mine, theirs = shares
    refuse(
        not math.isclose(mine, theirs, rel_tol=1e-6),
        f"the learning rate would jump at step {step}, from {theirs:.4g} of its peak to {mine:.4g}: branch where it "
        "stays (optim.schedule=wsd or constant), before the decay of either run",
    )


def begin(folder: Path, branch: Branch) -> None:
    """Let a new run folder go on from there."""
    lines = branch.run / "metrics.jsonl"
    if lines.is_file():
        write_bytes(folder / "metrics.jsonl", read_bytes(lines))
    with MetricsWriter(folder / "metrics.jsonl", resume_step=branch.step) as writer:
        writer.event(step=branch.step, elapsed_s=branch.elapsed_s, text=f"branched from {branch.checkpoint}")
    target = folder / "checkpoints" / branch.checkpoint.name
    with reported(target), atomic_folder(target, replace=True) as place:
        for file in sorted(branch.checkpoint.iterdir()):
            shutil.copyfile(file, place / file.name)
