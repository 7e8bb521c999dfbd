"""`hgrn2 train`: start or go on with a run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2 import console
from hgrn2.cli.trained import Flag, Folder, Settings, Training, next_steps, own_prompt, settings_of

if TYPE_CHECKING:
    from hgrn2.train.config import DataConfig, RunConfig
    from hgrn2.train.run import RunResult


@dataclass(frozen=True, kw_only=True)
class TrainLM(Training):
    """Train a language model; the same command goes on where an interrupted run stopped.

    Writes a run folder: config.json, metrics.jsonl, checkpoints/, tokenizer/, summary.json, report.html.

    Example: hgrn2 train lm demo --out runs/demo
    Example: hgrn2 train lm demo --plan --model hgrn2_1.3b --set parallel.data=8 train.sequence_length=2048
    Example: hgrn2 train lm small --data corpora/mine --out runs/mine --set train.budget_s=600 optim.lr=2e-3
    Example: hgrn2 train lm small --data corpora/books=0.7 corpora/code=0.3 --out runs/mixed
    Example: hgrn2 train lm small --data corpora/mine --valid wiki=corpora/wiki code=corpora/code --out runs/mine
    Example: hgrn2 train lm small --out runs/decay --branch runs/stable/checkpoints/step-00000900 --set train.steps=1000
    """

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]] = "demo"
    """demo (embedded text, five minutes on two cores), small (your own corpus on a CPU), wikitext103 (the paper's), or
    MODULE:NAME, a function or value of your own that gives a hgrn2.train.config.RunConfig."""
    out: Folder = Path("runs/lm")
    model: Annotated[str | None, tyro.conf.arg(metavar="PRESET")] = None
    """Model preset instead of the recipe's, such as hgrn2_70m."""
    data: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="CORPUS [CORPUS=WEIGHT ...]", help_behavior_hint="(default: the recipe's)"),
    ] = ()
    """Folder of a prepared corpus (hgrn2 data prepare), or shakespeare for the embedded text; several as
    FOLDER=WEIGHT are a mixture."""
    valid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=CORPUS")] = ()
    """Further prepared corpora whose held-out loss is measured, under names of yours; as data.validation."""
    branch: Annotated[Path | None, tyro.conf.arg(metavar="CHECKPOINT")] = None
    """Begin a new run from a checkpoint of another one (or a run folder's newest), as for a decay of its own: the same
    settings, but for its length and the end of the schedule."""
    set: Settings = ()
    """Any setting of the run, such as train.steps=500 model.width=256 model.mixer.head_size=64."""
    plan: Flag = False
    """Start nothing: print the memory of one process, what it sends, and the step time by the roofline of H200 GPUs,
    for these settings; needs no GPU."""
    plan_table: Flag = False
    """Start nothing: print such plans of 1.3 B, 3 B and 7 B parameters on 8, 64 and 512 GPUs, as Markdown."""

    def run(self) -> int:
        """Returns the exit code: as every training verb, or 0 after a plan."""
        if not (self.plan or self.plan_table):
            return super().run()
        from hgrn2.cli.plan import show_plan, show_table

        if self.plan_table:
            show_table()
        else:
            show_plan(self.settled(), self.json)
        return 0

    def train(self) -> "RunResult":
        from hgrn2.tasks.lm.run import train_language

        return train_language(self.settled(), self.out, branch=self.branch, **self.how)

    def settled(self) -> "RunConfig":
        """The run's settings. A plan has the vocabulary of a preset where no data is named, or none is there yet."""
        from hgrn2.models.presets import preset
        from hgrn2.settings import with_overrides
        from hgrn2.tasks.lm.recipes import recipe

        run = recipe(self.recipe)
        if self.model is not None:
            run = replace(run, model=preset(self.model))
        if self.data:
            run = replace(run, data=data_of(run.data, self.data))
        if self.valid:
            run = replace(run, data=replace(run.data, validation=self.valid))
        run = with_overrides(run, self.set)

        from hgrn2.tasks.lm.run import fit_vocabulary

        absent = not run.data.mixture and run.data.source != "shakespeare" and not Path(run.data.source).is_dir()
        given = self.plan and (absent or (self.model is not None and not self.data))
        if not given and not any(text.startswith("model.vocab_size=") for text in self.set):
            run = fit_vocabulary(run)
        return run

    def show(self, result: "RunResult") -> None:
        from rich.text import Text

        rows = []
        for name, row in result.summary["held_out"].items():
            bits = "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
            rows.append((name, f"{row['nats_per_token']:.4f}", bits, f"{row['perplexity']:.3f}", f"{row['tokens']:,}"))
        title = f"Held-out text after {result.step:,} steps, {result.summary['train_seconds']:.0f} s of training"
        head = ("measured with", "nats/token", "bits/byte", "perplexity", "tokens")
        console.show(console.Columns(head, rows, title=title))
        for sample in result.samples[:1]:
            console.show(Text.assemble((sample.prompt, "dim"), sample.text))
        next_steps(result.folder, "curves, samples and gate time scales", *_commands(result))


def data_of(data: "DataConfig", named: tuple[str, ...]) -> "DataConfig":
    """The settings with a corpus, or with a mixture where weights are given."""
    if len(named) == 1 and (Path(named[0]).exists() or "=" not in named[0]):
        return replace(data, source=named[0], mixture=())
    return replace(data, mixture=named)


def _commands(result: "RunResult") -> list[tuple[str | Path, ...]]:
    """What fits this run: a prompt from its own text, and a longer run of the demo after the demo alone."""
    run, folder = settings_of(result.folder), result.folder
    data = run.get("data", {})
    demo = data.get("source") == "shakespeare" and not data.get("mixture")
    prompt = "ROMEO:" if demo else own_prompt(result.samples[0].prompt if result.samples else "")
    asked = ("--prompt", prompt) if prompt else ("--prompt-file", "TEXT_FILE")
    commands: list[tuple[str | Path, ...]] = [("generate", folder, *asked, "--max-tokens", "400")]
    mixed = [("eval", folder, "--data", text.rpartition("=")[0], "--method", "all") for text in data.get("mixture", ())]
    commands += mixed or [("eval", folder, "--method", "all")]
    if demo:
        commands.append(("serve", folder))
        commands.append(("train", "lm", "demo", "--out", "runs/longer", "--set", "train.budget_s=1200"))
    return commands
