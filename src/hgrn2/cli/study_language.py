"""`hgrn2 study`, comparisons of language models: compare, expansion, ablation, length, others, structured, stream,
monitor; and table and collect."""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from hgrn2 import console
from hgrn2.cli.bench import Folder, flat
from hgrn2.settings import refuse
from hgrn2.study.protocol import GENERATED, Arm, Case, Compile, OptimizerName, Precision, SizeName, Study, StudyName

if TYPE_CHECKING:
    from hgrn2.rows import Row
    from hgrn2.study.record import Recorder
    from hgrn2.study.results import Group
    from hgrn2.study.running import Ended
    from hgrn2.study.training import Place

PAGE, RESULTS = Path("docs/study.md"), Path("results")
Sizes = Annotated[SizeName, tyro.conf.arg(metavar="SIZE")]


@flat
@dataclass(frozen=True, kw_only=True)
class LanguageStudy:
    """Options of every comparison of language models."""

    study: ClassVar[StudyName]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the runs, new or of this study."""
    size: Literal["small", "45m", "125m", "350m"] = "small"
    """small: minutes on a CPU; the others are for a GPU."""
    data: Annotated[str, tyro.conf.arg(metavar="CORPUS")] = "shakespeare"
    """Folder of a prepared corpus, or shakespeare for the embedded text."""
    models: tuple[str, ...] = ()
    """Which sides, by the names that --plan shows; none: all usual ones."""
    optimizers: tuple[OptimizerName, ...] = ()
    """adamw, muon; none: adamw, in compare also muon for the published forms."""
    lrs: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    """Learning rates of the sweep, which begins in their middle and goes outwards, beyond them by factors of two, until
    the best one is at no edge; one: no sweep."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="(default: the size's)")] = ()
    """Of weights and order of batches; the first one is that of the sweep."""
    sweep_tokens: float = 0
    """Tokens of a run of the sweep; 0: the size's."""
    final_tokens: float = -1
    """Tokens of the runs at the best rate; -1: the size's; 0: the sweep alone."""
    sequence_length: int = 0
    """T; 0: the size's, a quarter of it in length."""
    reset_at_documents: bool = False
    """Start states, and what attention sees, anew at each document inside a sequence, in every arm alike."""
    precision: Precision = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Any setting of all runs, such as optim.weight_decay=0.01."""
    device: str = "auto"
    """auto, cpu or cuda."""
    compile: Compile = "auto"
    """What torch.compile builds: none, blocks, whole; auto: blocks on a GPU, nothing on a CPU."""
    jobs: int = 1
    """Arms at once, each a process of its own; several GPUs get them in turn. Several on one GPU hide the time that
    compilation takes."""
    budget_minutes: float = 0.0
    """Begin no run that would not end by then, and stop one that does not; 0: no limit."""
    results: Folder = RESULTS
    """The folder whose study.jsonl gets the rows; runs that have one there count as done."""
    plan: bool = False
    """Only say what would be run."""
    json: bool = False
    """Print plan or outcome as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, also where the budget is used up; 1 where an arm failed; 130 after Ctrl-C."""
        from hgrn2.models.saved import usable_device
        from hgrn2.study.arms import arms
        from hgrn2.study.record import Recorder
        from hgrn2.study.training import find_place

        refuse(self.jobs < 1, f"--jobs is {self.jobs}; it must be at least 1")
        refuse(self.budget_minutes < 0, f"--budget-minutes is {self.budget_minutes}; it must not be negative")
        study = self._study()
        sides = arms(study, self.models, self.optimizers)
        place = find_place(study, self.out, usable_device(self.device))
        recorder = Recorder(self.results)
        if self.plan:
            return self._show_plan(study, sides, place, recorder)
        return self._train(study, sides, place, recorder)

    def _study(self) -> Study:
        return Study(
            study=self.study, size=self.size, source=self.data, lrs=self.lrs, seeds=self.seeds,
            sweep_tokens=int(self.sweep_tokens), final_tokens=int(self.final_tokens),
            sequence_length=self.sequence_length, reset_at_documents=self.reset_at_documents,
            precision=self.precision, compile=self.compile, set=self.set,
        )  # fmt: skip

    def _show_plan(self, study: Study, sides: list[Arm], place: "Place", recorder: "Recorder") -> int:
        from hgrn2.settings import to_dict
        from hgrn2.study.arms import not_offered
        from hgrn2.study.planned import plan

        found = plan(study, sides, place, recorder.rows)
        if self.json:
            console.print_json([to_dict(one) for one in found])
            return 0
        rows = [one.cells for one in found]
        tokens, minutes = sum(one.tokens_left for one in found), [one.minutes_left for one in found]
        known = all(one is not None for one in minutes)
        title = f"{study.study}, {study.size}: {sum(one.runs_left for one in found)} runs to come, {tokens:,} tokens"
        title += f", about {sum(one or 0 for one in minutes):.0f} minutes" if known else ""
        head = ("model", "optimiser", "parameters", "sweep", "final", "done", "to come", "tokens to come", "minutes")
        console.show(console.Columns(head, rows, text=(0, 1), title=title, frame=False))
        for name, why in not_offered(study).items():
            console.show(f"not offered: {name} ({why})")
        return 0

    def _train(self, study: Study, sides: list[Arm], place: "Place", recorder: "Recorder") -> int:
        from hgrn2.files import owned
        from hgrn2.study.record import check_folder, kept
        from hgrn2.study.running import run_study

        began, seconds = time.time(), 60 * self.budget_minutes or math.inf
        with owned(self.out):
            check_folder(self.out, place.common(study))
            for row in kept(self.out):
                recorder.add(row)  # a crash may have come between the run's end and its row's
            view = StudyView(recorder, quiet=self.json)
            place = _quiet(place, self.json or self.jobs > 1)
            left = max(0.0, seconds - (time.time() - began))
            ended = run_study(study, sides, place, list(recorder.rows), view, jobs=self.jobs, seconds=left)
        return self._report(study, sides, place, recorder, ended)

    def _report(
        self, study: Study, sides: list[Arm], place: "Place", recorder: "Recorder", ended: "list[Ended]"
    ) -> int:
        from hgrn2.study.plot import draw
        from hgrn2.study.record import common_of
        from hgrn2.study.results import groups

        own = [row for row in recorder.rows if common_of(row) == place.common(study)]
        found = groups(own, study.study)
        states = {one.state for one in ended}
        code = 130 if "interrupted" in states else 1 if "failed" in states else 0
        plots = [draw(group, self.out, f"{study.study}-{group.tokens}") for group in found]
        if self.json:
            arms_ = [{"arm": one.arm.name, "state": one.state, "text": one.text} for one in ended]
            console.print_json({"arms": arms_, "best": [_best(group) for group in found]}, indent=None)
            return code
        for group in found:
            _show(group)
        unreached = [arm for arm in sides if all(one.arm != arm for one in ended)]
        for one in ended:
            if one.state != "complete":
                print(f"{one.arm.name}: {one.state}{': ' if one.text else ''}{one.text}")
        if unreached:
            print(f"not reached: {', '.join(arm.name for arm in unreached)}")
        print(f"{self.results / 'study.jsonl'}{''.join(f', {path}' for path in plots if path)}")
        if states - {"complete"} or unreached:
            print("the same command goes on from there")
        return code


@flat
@dataclass(frozen=True, kw_only=True)
class StudyCompare(LanguageStudy):
    """HGRN2 beside LLaMA, GLA, HGRN1 and others at equal parameters: same text, same order, same trainer and budget.

    Learning rates are swept for each by itself; recurrent models also with (or without) a short convolution. The same
    command goes on where it stopped; a run whose row stands in --results is not made again.

    Example: hgrn2 study compare --out runs/compare --size small

    Example: hgrn2 study compare --out runs/c45 --size 45m --data corpora/wiki --device cuda --budget-minutes 9
      --models hgrn2 llama --optimizers adamw --sweep-tokens 16e6 --final-tokens 0
    """

    study: ClassVar[StudyName] = "compare"


@flat
@dataclass(frozen=True, kw_only=True)
class StudyExpansion(LanguageStudy):
    """The state expansion n of HGRN2 from 1 to 256 at equal parameters.

    Example: hgrn2 study expansion --out runs/expansion --models n4 n16 n64
    """

    study: ClassVar[StudyName] = "expansion"


@flat
@dataclass(frozen=True, kw_only=True)
class StudyAblation(LanguageStudy):
    """HGRN2 with one thing changed at a time: bounds, activations, norms, convolution.

    Example: hgrn2 study ablation --out runs/ablation --models hgrn2 no-bound exclusive-bound
    """

    study: ClassVar[StudyName] = "ablation"


@flat
@dataclass(frozen=True, kw_only=True)
class StudyLength(LanguageStudy):
    """Loss by position in texts of up to 16 times the training length.

    Example: hgrn2 study length --out runs/length --models hgrn2 llama
    """

    study: ClassVar[StudyName] = "length"


@flat
@dataclass(frozen=True, kw_only=True)
class StudyOthers(LanguageStudy):
    """Other linear RNNs with a vector state and expanded by an outer product, at equal parameters: HGRN1, minGRU,
    RG-LRU (Griffin) and LRU. Expanded states are as large as HGRN2's of the size.

    Example: hgrn2 study others --out runs/others --models mingru mingru-expanded
    """

    study: ClassVar[StudyName] = "others"


@flat
@dataclass(frozen=True, kw_only=True)
class StudyStructured(LanguageStudy):
    """Ways to make states of 4 D numbers at equal parameters: HGRN2's outer product, and dense or structured maps in
    front of HGRN1's recurrence.

    Example: hgrn2 study structured --out runs/structured --models outer dense low-rank
    """

    study: ClassVar[StudyName] = "structured"


@flat
@dataclass(frozen=True, kw_only=True)
class StudyStream(LanguageStudy):
    """A stream that never ends: bytes of a text read on with a carried state, its size and loss by position measured.

    HGRN2, HGRN1 and attention with a window of the training length, trained with carried states; HGRN2 trained on
    windows beside them. After training up to a million held-out bytes are read as one stream.

    Example: hgrn2 study stream --out runs/stream --data corpora/wiki-bytes
    """

    study: ClassVar[StudyName] = "stream"


@flat
@dataclass(frozen=True, kw_only=True)
class StudyMonitor(LanguageStudy):
    """Watching machines: forecasts and faults in generated logs, where what is right was said long ago.

    HGRN2, HGRN1, Mamba-2, attention with a window, and LLaMA with every key kept; the data is generated.

    Example: hgrn2 study monitor --out runs/monitor
    """

    study: ClassVar[StudyName] = "monitor"
    data: Annotated[str, tyro.conf.arg(metavar="generated")] = GENERATED
    """The logs are generated: nothing else can be given."""


@flat
@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """Make the tables and plots of docs/study.md and docs/applications.md anew from the rows of all studies.

    Example: hgrn2 study table
    """

    results: Folder = RESULTS
    """The folder with study.jsonl."""
    page: Annotated[Path, tyro.conf.arg(metavar="FILE")] = PAGE
    """The page; plots go beside it."""
    applications: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The page of stream and monitor; else applications.md beside the other one, where it exists."""

    def run(self) -> int:
        from hgrn2.study import applications_page, page
        from hgrn2.study.record import recorded

        rows = recorded(self.results)
        made = {self.page: page.update(self.page, rows)}
        beside = self.page.with_name("applications.md")
        applications = beside if self.applications is None and beside.exists() else self.applications
        if applications is not None:
            made[applications] = applications_page.update(applications, rows)
        for path, changed in made.items():
            print(f"{path}: {'made anew' if changed else 'as it was'}")
        return 0


@flat
@dataclass(frozen=True, kw_only=True)
class StudyCollect:
    """Take rows that another machine wrote into the results here; a row that is there already is not added twice.

    Example: hgrn2 study collect from-the-gpu/study.jsonl
    """

    rows: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE")]]
    """Files of rows, or folders with a study.jsonl."""
    results: Folder = RESULTS
    """The folder whose study.jsonl gets them."""

    def run(self) -> int:
        from hgrn2.study.record import collect

        refuse(not self.rows, "name at least one file of rows")
        new, known = collect(self.rows, self.results)
        print(f"{self.results / 'study.jsonl'}: {new} new rows, {known} known")
        return 0


class StudyView:
    """Records every row as it comes, and prints a line when a run begins and when it ends."""

    def __init__(self, recorder: "Recorder", *, quiet: bool) -> None:
        self.recorder, self.quiet = recorder, quiet
        self._begun: dict[Case, float] = {}

    def started(self, case: Case) -> None:
        self._begun[case] = time.monotonic()
        self._print(case.label)

    def finished(self, case: Case, row: "Row") -> None:
        self.recorder.add(row)
        seconds = time.monotonic() - self._begun.pop(case, time.monotonic())
        diverged = row.details.get("diverged")
        told = f"diverged ({diverged})" if diverged else f"held-out loss {row.value:.4f}"
        speed = f", {row.details['tokens_per_s']:,} tokens/s" if row.details.get("tokens_per_s") else ""
        self._print(f"{case.label}: {told} after {seconds:.0f} s{speed}")

    def ended(self, ended: "Ended") -> None:
        if ended.state != "complete":
            self._print(f"{ended.arm.name}: {ended.state}{': ' if ended.text else ''}{ended.text}")

    def _print(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def _quiet(place: "Place", quiet: bool) -> "Place":
    from dataclasses import replace

    return replace(place, quiet=quiet or not sys.stdout.isatty())


def _best(group: "Group") -> dict[str, object]:
    entries = [
        {"model": one.subject, "optimizer": one.optimizer, "lr": one.lr, "loss": one.loss, "spread": one.spread,
         "seeds": len(one.best)}
        for one in group.entries
    ]  # fmt: skip
    return {"tokens": group.tokens, "entries": entries, "open": [one.name for one in group.open_sweeps]}


def _show(group: "Group") -> None:
    rows = [(one.name, one.shown, str(len(one.best)), f"{one.lr:g}", str(len(one.by_rate))) for one in group.entries]
    title = f"Held-out loss after {group.tokens:,} tokens, each at its best rate"
    console.show(console.Columns(("model", "nats/token", "seeds", "rate", "rates"), rows, title=title, frame=False))
