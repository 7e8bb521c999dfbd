"""`hgrn2 tune`: adapt a trained model without touching its weights."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hgrn2 import console
from hgrn2.cli.trained import Folder, Settings, Training, next_steps

if TYPE_CHECKING:
    from hgrn2.tasks.tune.run import TuneResult


@dataclass(frozen=True, kw_only=True)
class TuneState(Training):
    """Learn the state from which a frozen model reads and writes texts of one kind; the weights stay as they are.

    Writes a run folder with state.safetensors, which hgrn2 generate MODEL --state takes. The same command goes on where
    an interrupted run stopped.

    Example: hgrn2 tune state runs/wiki --data shakespeare --out runs/wiki-shakespeare
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_OR_MODEL")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    data: Annotated[str | None, tyro.conf.arg(metavar="CORPUS", help_behavior_hint="(default: shakespeare)")] = None
    """Folder of a corpus prepared with the model's tokenizer, or shakespeare for the embedded text."""
    out: Folder = Path("runs/tuned")
    set: Settings = ()
    """Any setting of the run, such as train.steps=500 optim.lr=0.1 start_tokens=1000."""

    def train(self) -> "TuneResult":
        from hgrn2.settings import with_overrides
        from hgrn2.tasks.tune.config import TuneSettings

        settings = with_overrides(TuneSettings(), self.set)

        from hgrn2.generate.loading import load
        from hgrn2.tasks.tune.run import tune_state, with_data

        loaded = load(self.model, self.device, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
        settings = with_data(settings, self.data)
        return tune_state(loaded, settings, self.out, restart=self.restart, quiet=self.json)

    def show(self, result: "TuneResult") -> None:
        summary = result.summary
        title = f"Held-out text, {summary['trained_numbers']:,} trained numbers, {result.step:,} steps"
        rows = []
        for name, row in summary["held_out"].items():
            bits = "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
            rows.append((name, f"{row['nats_per_token']:.4f}", bits))
        console.show(console.Columns(("measured with", "nats/token", "bits/byte"), rows, title=title))
        next_steps(result.folder, "curves", ("generate", self.model, "--state", result.state))

    def more(self, result: "TuneResult") -> dict[str, Any]:
        return {"state": str(result.state)}
