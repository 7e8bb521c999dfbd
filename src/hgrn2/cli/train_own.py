"""`hgrn2 train classify`: a classifier of one's own tables."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from hgrn2.cli.train_classify import TrainClasses
from hgrn2.cli.trained import Flag, Folder, Settings
from hgrn2.settings import refuse, with_overrides

if TYPE_CHECKING:
    from hgrn2.tasks.classify.config import ClassifyRun
    from hgrn2.tasks.classify.own import OwnFiles, Prepared
    from hgrn2.train.run import RunResult

Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="(optional)")]
MINUTES = 3.0


@dataclass(frozen=True, kw_only=True)
class TrainClassify(TrainClasses):
    """Train a classifier on your own labelled examples: texts, or sequences of numbers, in CSV or JSONL files.

    Columns are guessed from their names (text, review, ... and label, class, ...) and told; any labels will do. A tenth
    of the examples is held out, of each class its share. The same command goes on where an interrupted run stopped.
    Writes a run folder: config.json, metrics.jsonl, checkpoints/, examples/, summary.json, report.html.

    Example: hgrn2 train classify reviews.csv --out runs/reviews

    Example: hgrn2 train classify a.jsonl b.jsonl --text-column body --label-column topic --tokenizer bpe:4000

    Example: hgrn2 train classify heartbeats.csv --number-columns t1 t2 t3 t4 --label-column kind
    """

    files: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="(required)")]
    ]
    """Tables to learn from: .csv, .tsv, .jsonl or .json, each also as .xz or .gz."""
    valid: Files = ()
    """Tables held out for evaluation during training; without them --valid-fraction of the others."""
    test: Files = ()
    """Tables held out for one measurement at the end."""
    valid_fraction: float = 0.1
    """Part of the examples that is held out, of each class its share."""
    text_column: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: guessed)")] = None
    """The column of the texts."""
    number_columns: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="(default: guessed)")
    ] = ()
    """The column whose cells are sequences of numbers ("0.1 0.5 0.2"), or the columns that are the steps of one."""
    label_column: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: guessed)")] = None
    """The column of the labels, of any kind."""
    no_header: Flag = False
    """The first row of the CSV files is an example; columns are then named 1, 2, 3."""
    bad: Literal["stop", "skip"] = "stop"
    """What a row without text or label does: end it all, or be left out and counted."""
    tokenizer: Annotated[str, tyro.conf.arg(metavar="SPEC")] = "auto"
    """Of texts: bytes, chars, bpe:N (N tokens learned from the texts), a tokenizer.json or a folder; auto is bpe:4000,
    or bytes without hgrn2[text]."""
    max_length: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 512 tokens; 2048 bytes or numbers)")
    ] = None
    """Longest example; what comes after is cut off, and told."""
    out: Folder = Path("runs/classify")
    recipe: Annotated[
        str | None, tyro.conf.arg(metavar="MODULE:NAME", help_behavior_hint="(default: one that fits the examples)")
    ] = None
    """A function or value of your own that gives a hgrn2.tasks.classify.config.ClassifyRun."""
    minutes: Annotated[float | None, tyro.conf.arg(metavar="M", help_behavior_hint="(default: 3, none on a GPU)")] = (
        None
    )
    """Time for training; 0: as many steps as its epochs take."""
    seed: int = 0
    """Decides which examples are held out, where weights begin and the order of examples."""
    set: Settings = ()
    """Any setting of the run, such as model.width=128 model.dropout=0.3 optim.lr=1e-3 train.steps=500."""

    def train(self) -> "RunResult":
        refuse(not self.files, "name the tables to learn from")
        both = self.text_column is not None and bool(self.number_columns)
        refuse(both, "give --text-column or --number-columns, not both")
        refuse(not 0 <= self.seed < 2**63, f"--seed is {self.seed}; it must lie in [0, 2^63)")
        refuse(self.minutes is not None and self.minutes < 0, f"--minutes is {self.minutes}; it must not be negative")

        from hgrn2.cli.progress import progress_shown
        from hgrn2.tasks.classify.own import prepare
        from hgrn2.tasks.classify.run import train_classifier

        chosen = None if self.recipe is None else self.own(self.recipe, {})
        with progress_shown() as progress:
            progress("reading", 0, 1)
            prepared = prepare(self._files(), progress)
        self._tell(prepared)
        run = self._fitted(prepared, chosen)
        return train_classifier(run, self.out, prepared=prepared, **self.how)

    def _files(self) -> "OwnFiles":
        from hgrn2.tasks.classify.own import OwnFiles

        text, numbers = self.text_column, self.number_columns
        return OwnFiles(
            train=self.files, valid=self.valid, test=self.test, label=self.label_column,
            inputs=(text,) if text is not None else numbers,
            kind="text" if text is not None else "numbers" if numbers else None,
            tokenizer=self.tokenizer, max_length=self.max_length, valid_fraction=self.valid_fraction, seed=self.seed,
            header=not self.no_header, bad=self.bad,
        )  # fmt: skip

    def _fitted(self, prepared: "Prepared", chosen: "ClassifyRun | None") -> "ClassifyRun":
        from hgrn2.models.saved import usable_device
        from hgrn2.tasks.classify.own import own_recipe
        from hgrn2.tasks.classify.run import fit_to_own

        if chosen is None:
            run = own_recipe(prepared, on_gpu=usable_device(self.device).type != "cpu")
        else:
            run = fit_to_own(chosen, prepared)
        if self.minutes is not None:
            run = replace(run, train=replace(run.train, budget_s=60 * self.minutes))
        if self.seed or chosen is None:  # a recipe of one's own has a seed of its own
            run = replace(run, train=replace(run.train, seed=self.seed))
        return with_overrides(run, self.set)

    def _tell(self, prepared: "Prepared") -> None:
        """What was understood of the files, before anything long begins; on standard error."""
        import numpy as np

        from hgrn2.cli.data_classes import label_lines

        counts = {
            name: np.bincount(part.labels, minlength=len(prepared.described.classes)).tolist()
            for name, part in prepared.splits.items()
        }
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in prepared.splits.items())
        lines = [f"examples: {sizes}; {len(prepared.described.classes)} classes", *prepared.notes]
        print("\n".join(lines), file=sys.stderr)
        print(label_lines(list(prepared.described.classes), counts), file=sys.stderr)
