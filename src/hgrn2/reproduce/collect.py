"""Rows of runs that were trained by `hgrn2 train`, perhaps elsewhere: made from their folders, with their machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.models.config import DeiTConfig
from hgrn2.reproduce.one_run import Job, row_of
from hgrn2.reproduce.plan import TASKS, Plan, Run, RunSpec, Size
from hgrn2.rows import Row
from hgrn2.settings import from_dict, refuse
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.mqar.config import MQARRun
from hgrn2.tasks.mqar.recipes import name_of
from hgrn2.train.runs import read_finished

MIXERS = {"hgru2": "hgrn2", "hgru1": "hgrn1", "attention": "transformer"}


def row_of_run(folder: Path, size: Size = "full", at_once: int = 1) -> Row:
    """The row of a finished run of a task that a table has; `at_once` is how many runs shared its device.

    Raises:
        UserError: no finished run there, or one of another task or model.
    """
    values, summary, machine = read_finished(folder)
    kinds: dict[str, type[ClassifyRun] | type[MQARRun]] = {"classify": ClassifyRun, "mqar": MQARRun}
    kind = kinds.get(str(values.get("kind")))
    if kind is None:
        raise UserError(f"{folder} holds a run that no table has; those of lra, image and mqar do")
    run: Run = from_dict(kind, values, str(folder / "config.json"))
    spec = _spec(folder, run, size)
    job = Job(plan=Plan(table=_table(spec.task), size=size), spec=spec, place=folder, at_once=at_once,
              difference=_difference(summary))  # fmt: skip
    row = row_of(job, run, summary)
    details = row.details | {"device": "cuda" if machine.get("gpu") else "cpu"}
    return replace(row, machine=machine, date=machine["date_utc"], details=details)


def _spec(folder: Path, run: Run, size: Size) -> RunSpec:
    if isinstance(run, MQARRun):
        model, sized = name_of(run.model)
        n = run.model.mixer.head_size if sized else None
        return RunSpec(table="mqar", task="mqar", model=model, seed=run.train.seed, size=size, n=n)
    table = _table(run.task)
    refuse(not table, f"{folder} holds a run of the task {run.task}, which no table has")
    model = "transformer" if isinstance(run.model, DeiTConfig) else MIXERS.get(run.model.named_kinds, "")
    refuse(not model, f"{folder} holds a run of a model that the table does not have")
    return RunSpec(table=table, task=run.task, model=model, seed=run.train.seed, size=size)


def _table(task: str) -> Any:
    return next((table for table, tasks in TASKS.items() if task in tasks), None)


def _difference(summary: dict[str, Any]) -> str:
    """How the examples differ from the published ones, as the run itself wrote down."""
    return str(summary.get("origin", ""))
