"""Recall is trained: a run's settings in, a run folder out."""

from pathlib import Path

from hgrn2.tasks.mqar.config import MQARRun
from hgrn2.tasks.mqar.task import MQARTask, state_numbers
from hgrn2.train.run import RunResult, train

__all__ = ["state_numbers", "train_mqar"]


def train_mqar(
    run: MQARRun, folder: Path, *, device: str = "auto", restart: bool = False, quiet: bool = False
) -> RunResult:
    """Train in `folder`, or go on where an interrupted run stopped; arguments as of `hgrn2.train.run.train`."""
    return train(run, lambda place: MQARTask(run, place), folder, device=device, restart=restart, quiet=quiet)
