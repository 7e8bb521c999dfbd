"""`hgrn2 reproduce`: the paper's tables, run from beginning to end, and the page that shows them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hgrn2 import console
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from hgrn2.reproduce.plan import Plan

Flag = tyro.conf.FlagCreatePairsOff[bool]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Names = Annotated[str, tyro.conf.arg(metavar="A,B", help_behavior_hint="(default: all)")]
PAGE, RESULTS = Path("docs/reproduce.md"), Path("results")
SEEDS = "(default: 0,1,2 for ListOps and recall, 0 elsewhere)"


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Options of every table."""

    out: Folder
    """Folder of the runs and of examples that are made for them: new, or that of an earlier call, which goes on."""
    models: Names = ""
    """Which models, with commas."""
    seeds: Annotated[str, tyro.conf.arg(metavar="0,1", help_behavior_hint=SEEDS)] = ""
    """Which seeds, with commas."""
    size: Literal["full", "fast", "small"] = "full"
    """full: the recipes of the published tables; fast: ours, for ten minutes of a GPU; small: smaller models and data,
    minutes on a CPU."""
    minutes: float = 0.0
    """Budget of each run; its schedule then follows the clock. 0: the steps of the recipe."""
    parallel: int = 1
    """Runs at once, each a process of its own; several small ones together keep a GPU busy."""
    workers: int = 1
    """Processes that generate examples."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Any setting of all runs, such as train.steps=500."""
    device: str = "auto"
    """auto, cpu or cuda."""
    results: Folder = RESULTS
    """The folder whose reproduce.jsonl gets a row for each finished run."""
    page: Annotated[Path, tyro.conf.arg(metavar="FILE")] = PAGE
    """The page whose tables are made anew, where it is there."""
    dry_run: Flag = False
    """Only say what would be run."""
    json: Flag = False
    """Print plan or outcomes as JSON and show no live view."""

    def go(self, table: Literal["lra", "image", "mqar"], tasks: str = "", data: Path | None = None) -> int:
        """Returns the exit code: 0; 1 where a run failed; 2 where no run has data; 130 after Ctrl-C."""
        from hgrn2.reproduce.plan import Plan

        refuse(self.parallel < 1, f"--parallel is {self.parallel}; it must be at least 1")
        refuse(self.workers < 1, f"--workers is {self.workers}; it must be at least 1")
        refuse(data is not None and not data.is_dir(), f"--data: {data} is not a folder")
        plan = Plan(
            table=table, tasks=_names(tasks), models=_names(self.models), seeds=_numbers(self.seeds), size=self.size,
            minutes=self.minutes, set=self.set,
        )  # fmt: skip
        return self._show_plan(plan, data) if self.dry_run else self._run(plan, data)

    def _show_plan(self, plan: "Plan", data: Path | None) -> int:
        from hgrn2.cli.reproduce_view import print_plan
        from hgrn2.reproduce.whole import planned
        from hgrn2.settings import to_dict

        found = planned(plan, self.out, data)
        if self.json:
            console.print_json([to_dict(one) for one in found])
        else:
            print_plan(found)
        return 0

    def _run(self, plan: "Plan", data: Path | None) -> int:
        from hgrn2.files import owned

        with owned(self.out):
            return self._run_all(plan, data)

    def _run_all(self, plan: "Plan", data: Path | None) -> int:
        from hgrn2.cli.progress import progress_shown
        from hgrn2.cli.reproduce_view import PlanView, print_lines
        from hgrn2.reproduce.running import run_all
        from hgrn2.reproduce.whole import Recorder, jobs_of, outcomes_as_json
        from hgrn2.rows import prepare_folder

        prepare_folder(self.results)
        recorder = Recorder(self.results)
        with progress_shown() as progress:
            jobs, missing = jobs_of(plan, self.out, data, device=self.device, parallel=self.parallel,
                                    workers=self.workers, progress=progress)  # fmt: skip
        with PlanView(len(jobs), quiet=self.json) as view:
            for outcome in missing:
                view.ended(outcome)
            found = missing + run_all(jobs, view, recorder.add, parallel=self.parallel, quiet=self.json)
        changed = _update(self.page, self.results) if recorder.rows and self.page.exists() else False
        if self.json:
            console.print_json(outcomes_as_json(found))
        else:
            print_lines(recorder.of(plan), plan.table)
            print(f"{self.results / 'reproduce.jsonl'}" + (f", {self.page}" if changed else ""))
        states = {outcome.state for outcome in found}
        if "interrupted" in states:
            print("stopped; the same command goes on from there", file=sys.stderr)
            return 130
        return 1 if "failed" in states else 2 if states == {"no data"} else 0


@dataclass(frozen=True, kw_only=True)
class ReproduceLRA(Reproduce):
    """Long Range Arena: every task with every model and seed, each a run of its own.

    Finished runs are skipped and an interrupted one goes on. ListOps and Pathfinder are generated; text and retrieval
    need --data with their files, image needs CIFAR-10 there. Runs without data are named, and the rest go on.

    Example: hgrn2 reproduce lra --out runs/lra --size small --tasks listops --models hgrn2,hgrn1
    Example: hgrn2 reproduce lra --out runs/lra --data datasets --device cuda --minutes 10 --parallel 4
    """

    tasks: Names = ""
    """listops, text, retrieval, image, pathfinder, pathx, with commas. The small size leaves pathx out."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Folder with imdb-*.jsonl*, AAN's *.tsv, CIFAR-10; or with examples made before, in folders named as the tasks."""

    def run(self) -> int:
        return self.go("lra", self.tasks, self.data)


@dataclass(frozen=True, kw_only=True)
class ReproduceImage(Reproduce):
    """Image classification: images as patches; transformer is DeiT.

    Finished runs are skipped and an interrupted one goes on. Runs without data are named, and the rest go on.

    Example: hgrn2 reproduce image --out runs/image --data datasets --size small --tasks cifar10
    """

    tasks: Names = ""
    """cifar10, fashion-mnist, imagenet, with commas. The small size leaves imagenet out."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Folder with the files of the data sets; or with examples made before, in folders named as the tasks."""

    def run(self) -> int:
        return self.go("image", self.tasks, self.data)


@dataclass(frozen=True, kw_only=True)
class ReproduceMQAR(Reproduce):
    """Recall: share of right answers by model and size of the state, at the learning rate of the recipe.

    `hgrn2 study mqar` searches learning rates as well. Finished runs are skipped and an interrupted one goes on.

    Example: hgrn2 reproduce mqar --out runs/recall --size small --models hgrn2-conv --seeds 0
    """

    def run(self) -> int:
        return self.go("mqar")


@dataclass(frozen=True, kw_only=True)
class ReproduceTable:
    """Make the tables of docs/reproduce.md anew from the rows of all runs.

    Example: hgrn2 reproduce table
    """

    results: Folder = RESULTS
    """The folder with reproduce.jsonl."""
    page: Annotated[Path, tyro.conf.arg(metavar="FILE")] = PAGE
    """The page."""

    def run(self) -> int:
        changed = _update(self.page, self.results)
        print(f"{self.page}: {'made anew' if changed else 'as it was'}")
        return 0


@dataclass(frozen=True, kw_only=True)
class ReproduceCollect:
    """Take finished runs of `hgrn2 train lra`, image or mqar into the tables, wherever they were trained.

    Each row carries the machine of its run. A row that is there already is not added twice.

    Example: hgrn2 reproduce collect runs/listops-0 runs/listops-1 runs/listops-2
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Run folders; of each the settings, the summary and the environment are read."""
    size: Literal["full", "fast", "small"] = "full"
    """Whose recipes they had: the published ones, those for ten minutes of a GPU, or those of a small form."""
    at_once: int = 1
    """How many runs shared the device: minutes of a run are counted as its share."""
    results: Folder = RESULTS
    """The folder whose reproduce.jsonl gets the rows."""
    page: Annotated[Path, tyro.conf.arg(metavar="FILE")] = PAGE
    """The page whose tables are made anew, where it is there."""

    def run(self) -> int:
        from hgrn2.reproduce.collect import row_of_run
        from hgrn2.reproduce.whole import Recorder
        from hgrn2.rows import prepare_folder

        refuse(not self.runs, "name at least one run folder")
        refuse(self.at_once < 1, f"--at-once is {self.at_once}; it must be at least 1")
        # All rows before the first is recorded.
        rows = [row_of_run(folder, self.size, self.at_once) for folder in self.runs]
        prepare_folder(self.results)
        recorder = Recorder(self.results)
        for folder, row in zip(self.runs, rows, strict=True):
            new = recorder.add(row)
            print(f"{folder}: {row.case['task']}, {row.subject}, {row.value:.2%} right{'' if new else ', known'}")
        if self.page.exists():
            _update(self.page, self.results)
        return 0


def _update(page: Path, results: Path) -> bool:
    from hgrn2.reproduce.page import update
    from hgrn2.reproduce.whole import read_recorded

    return update(page, read_recorded(results))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[int, ...]:
    found: list[Any] = list(_names(text))
    for place, value in enumerate(found):
        refuse(not value.isdigit(), f"--seeds has {value!r}; write whole numbers with commas, as in 0,1,2")
        found[place] = int(value)
    return tuple(found)
