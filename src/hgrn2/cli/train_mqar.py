"""`hgrn2 train mqar`: multi-query associative recall."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2 import console
from hgrn2.cli.trained import Folder, Settings, Training, next_steps

if TYPE_CHECKING:
    from hgrn2.train.run import RunResult


@dataclass(frozen=True, kw_only=True)
class TrainMQAR(Training):
    """Train on associative recall: pairs of keys and values, then keys whose values must be named.

    The sequences are made as they are needed. The same command goes on where an interrupted run stopped. Writes a run
    folder: config.json, metrics.jsonl, checkpoints/, summary.json, report.html.

    Example: hgrn2 train mqar small --out runs/mqar
    Example: hgrn2 train mqar small --out runs/mqar-gla --model gla-conv --head-size 16
    Example: hgrn2 train mqar h100 --out runs/mqar-128 --device cuda
    """

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]] = "small"
    """small (a CPU, a minute), zoology (the published sets and amount of training, GPU), h100 (its task in minutes), or
    MODULE:NAME, a function or value of your own that gives a hgrn2.tasks.mqar.config.MQARRun."""
    out: Folder = Path("runs/mqar")
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Mixer instead of the recipe's: hgrn2, hgrn2-conv, hgrn1, gla, gla-conv, attention, attention-conv."""
    head_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """n instead of the recipe's: the state of a layer has D n numbers."""
    width: Annotated[int | None, tyro.conf.arg(metavar="D")] = None
    """D instead of the recipe's; the GLU follows with twice as much."""
    set: Settings = ()
    """Any setting of the run, such as train.steps=500 optim.lr=1e-3 data.train=64x4x5000,64x8x5000."""

    def train(self) -> "RunResult":
        from hgrn2.tasks.mqar.recipes import changed, recipe

        run = recipe(self.recipe)
        run = changed(run, model=self.model, head_size=self.head_size, width=self.width, assignments=self.set)

        from hgrn2.tasks.mqar.run import train_mqar

        return train_mqar(run, self.out, **self.how)

    def show(self, result: "RunResult") -> None:
        summary = result.summary
        title = f"Recall after {result.step:,} steps, {summary['train_seconds']:.0f} s of training"
        rows = []
        for row in summary["held_out"].values():
            cells = (f"{row['length']:,}", f"{row['pairs']:,}", f"{row['queries']:,}")
            rows.append((*cells, f"{row['accuracy']:.1%}", f"{row['loss']:.4f}"))
        caption = f"{summary['parameters']:,} parameters, state of {summary['state_numbers']:,}"
        head = ("tokens", "pairs", "queries", "accuracy", "nats/query")
        console.show(console.Columns(head, rows, text=(), title=title, caption=caption))
        next_steps(result.folder, "curves and gate time scales")
