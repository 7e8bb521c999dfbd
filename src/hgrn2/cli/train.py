"""`hgrn2 train`: start or go on with a run."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from hgrn2.tasks.lm.run import RunResult

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class TrainLM:
    """Train a language model; the same command goes on where an interrupted run stopped.

    Writes a run folder: config.json, metrics.jsonl, checkpoints/, tokenizer/, summary.json, report.html.

    Example: hgrn2 train lm demo --out runs/demo
    Example: hgrn2 train lm small --data corpora/mine --out runs/mine --set train.budget_s=600 optim.lr=2e-3
    """

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]] = "demo"
    """demo (embedded text, five minutes on two cores), small (your own corpus on a CPU), wikitext103 (the paper's)."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/lm")
    """Run folder, new or of this very run."""
    model: Annotated[str | None, tyro.conf.arg(metavar="PRESET")] = None
    """Model preset instead of the recipe's, such as hgrn2_70m."""
    data: Annotated[str | None, tyro.conf.arg(metavar="CORPUS")] = None
    """Folder of a prepared corpus (hgrn2 data prepare), or shakespeare for the embedded text."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Any setting of the run, such as train.steps=500 model.width=256 model.mixer.head_size=64."""
    device: str = "auto"
    """auto, cpu or cuda."""
    restart: Flag = False
    """Drop what the folder holds of an earlier run and begin anew."""
    json: Flag = False
    """Print the summary as JSON and show no live view."""

    def run(self) -> int:
        """Returns the exit code: 0, or 130 after Ctrl-C with a checkpoint."""
        from hgrn2.models.presets import preset
        from hgrn2.settings import with_overrides
        from hgrn2.tasks.lm.recipes import recipe

        run = recipe(self.recipe)
        if self.model:
            run = replace(run, model=preset(self.model))
        if self.data:
            run = replace(run, data=replace(run.data, source=self.data))
        run = with_overrides(run, self.set)

        from hgrn2.tasks.lm.run import fit_vocabulary, train_language

        if not any(text.startswith("model.vocab_size=") for text in self.set):
            run = fit_vocabulary(run)
        result = train_language(run, self.out, device=self.device, restart=self.restart, quiet=self.json)
        if self.json:
            print(json.dumps({"folder": str(result.folder), "interrupted": result.interrupted, **result.summary}))
        elif result.interrupted:
            print(f"stopped at step {result.step}; the same command, without --restart, goes on from there")
        else:
            _show(result)
        return 130 if result.interrupted else 0


def _show(result: "RunResult") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(
        title=f"Held-out text after {result.step:,} steps, {result.summary['train_seconds']:.0f} s of training"
    )
    for column in ("measured with", "nats a token", "bits a byte", "perplexity", "tokens"):
        table.add_column(column, justify="left" if column == "measured with" else "right")
    for name, row in result.summary["held_out"].items():
        bits = "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
        table.add_row(name, f"{row['nats_per_token']:.4f}", bits, f"{row['perplexity']:.3f}", f"{row['tokens']:,}")
    console.print(table)
    for sample in result.samples[:1]:
        console.print(Text.assemble((sample.prompt, "dim"), sample.text), soft_wrap=True)
    folder = result.folder
    program = sys.argv[0] if Path(sys.argv[0]).name == "hgrn2" else "hgrn2"
    console.print(Text.assemble(
        "\nNext:\n",
        f"  {folder / 'report.html'}   curves, samples and gate time scales, for a browser\n",
        f"  {program} generate {folder} --prompt 'ROMEO:' --max-tokens 400\n",
        f"  {program} eval {folder} --method all\n",
        f"  {program} train lm demo --out runs/longer --set train.budget_s=1200\n",
    ), soft_wrap=True)  # fmt: skip
