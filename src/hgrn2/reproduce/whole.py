"""A plan from outside: its runs with their data made ready, what a dry run says of them, and where rows are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.progress import Progress
from hgrn2.reproduce.data import Source, difference, find, prepare
from hgrn2.reproduce.one_run import BENCH, ROW, Job
from hgrn2.reproduce.plan import Plan, RunSpec
from hgrn2.reproduce.running import Outcome
from hgrn2.rows import Row, append, read_rows
from hgrn2.tasks.mqar.config import MQARRun


@dataclass(frozen=True)
class Planned:
    """One line of a dry run."""

    table: str
    task: str
    model: str
    n: int | None
    seed: int
    parameters: int
    """Where the data is not there yet, those of the recipe; vocabulary and classes of the data may change them."""
    steps: int
    batch: int
    minutes: float
    """Budget; 0: the steps decide."""
    data: str
    state: str
    """new, interrupted or finished."""


class Recorder:
    """The rows of results/reproduce.jsonl; a row that it has already is not added twice."""

    def __init__(self, results: Path) -> None:
        self.results, self.rows = results, read_recorded(results)

    def add(self, row: Row) -> bool:
        """Append a row, unless it was recorded before; returns whether it was not."""
        new = row not in self.rows
        if new:
            append(self.results, row)
            self.rows.append(row)
        return new

    def of(self, plan: Plan) -> list[Row]:
        """The newest rows of the plan's runs."""
        wanted = {(spec.task, spec.model, spec.size, spec.n, spec.seed) for spec in plan.specs()}
        found = {}
        for row in self.rows:
            key = (row.case["task"], row.subject, row.case["size"], row.case["n"], row.case["seed"])
            if row.case["table"] == plan.table and key in wanted:
                found[key] = row
        return list(found.values())


def read_recorded(results: Path) -> list[Row]:
    """The rows of reproduce.jsonl; none where there is no such file."""
    path = results / f"{BENCH}.jsonl"
    return read_rows(path) if path.exists() else []


def jobs_of(
    plan: Plan, out: Path, data: Path | None, *, device: str = "auto", parallel: int = 1, workers: int = 1,
    progress: Progress,
) -> tuple[list[Job], list[Outcome]]:  # fmt: skip
    """The runs of a plan with their examples made ready, and those that have none.

    Raises:
        UserError: settings that cannot be, before anything is made.
    """
    specs = plan.specs()
    for spec in specs:
        plan.run_of(spec)
    sources: dict[str, tuple[Path, str] | str] = {}
    for spec in specs:
        if spec.task != "mqar" and spec.task not in sources:
            sources[spec.task] = _ready(find(spec, out, data, workers), progress)
    jobs, missing = [], []
    for spec in specs:
        source = sources.get(spec.task, (Path(), ""))
        job = Job(plan=plan, spec=spec, place=out / "runs" / spec.name, device=device,
                  at_once=min(parallel, len(specs)))  # fmt: skip
        if isinstance(source, str):
            missing.append(Outcome(job, "no data", text=source))
        else:
            folder = "" if spec.task == "mqar" else str(source[0])
            jobs.append(Job(**{**job.__dict__, "data": folder, "difference": source[1]}))
    return jobs, missing


def _ready(source: Source, progress: Progress) -> tuple[Path, str] | str:
    """The folder of the examples and how they differ, or why there are none."""
    try:
        folder = prepare(source, progress)
        return folder, difference(folder)
    except UserError as error:
        return str(error)


def planned(plan: Plan, out: Path, data: Path | None) -> list[Planned]:
    """What would be run; nothing is made."""
    return [_planned(plan, spec, out, data) for spec in plan.specs()]


def _planned(plan: Plan, spec: RunSpec, out: Path, data: Path | None) -> Planned:
    place = out / "runs" / spec.name
    state = "finished" if (place / ROW).exists() else "interrupted" if (place / "checkpoints").exists() else "new"
    source = None if spec.task == "mqar" else find(spec, out, data)
    run: Any = plan.run_of(spec, str(source.folder) if source else "")
    if source is not None and source.make is None and not source.missing:
        from hgrn2.tasks.classify.run import fit_to_data

        run = fit_to_data(run)
    return Planned(
        table=spec.table, task=spec.task, model=spec.model, n=spec.n, seed=spec.seed, parameters=_parameters(run),
        steps=run.train.steps, batch=run.train.batch_size, minutes=plan.minutes,
        data=source.state if source else "generated as it is needed", state=state,
    )  # fmt: skip


def _parameters(run: Any) -> int:
    """Of the model that would be built."""
    import torch

    from hgrn2.models.language import LanguageModel
    from hgrn2.models.saved import build_classifier

    with torch.device("meta"):
        model = LanguageModel(run.model) if isinstance(run, MQARRun) else build_classifier(run.model)
    return sum(parameter.numel() for parameter in model.parameters())


def outcomes_as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Outcomes as plain values."""
    return [
        {
            "task": one.job.spec.task, "model": one.job.spec.model, "n": one.job.spec.n, "seed": one.job.spec.seed,
            "state": one.state, "folder": str(one.job.place), "text": one.text,
            "accuracy": None if one.row is None else one.row.value,
        }
        for one in outcomes
    ]  # fmt: skip
