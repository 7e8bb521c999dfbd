"""One run of a table, from its settings to its row; a finished one is read, an interrupted one goes on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hgrn2.files import read_json, write_json
from hgrn2.reproduce.plan import Plan, Run, RunSpec
from hgrn2.reproduce.published import RECIPES, RESULTS
from hgrn2.reproduce.recall_settings import hardest
from hgrn2.rows import Row, measurement, row_from
from hgrn2.settings import from_dict, to_dict
from hgrn2.tasks.classify.config import ClassifyRun
from hgrn2.tasks.mqar.config import MQARRun
from hgrn2.train.same_run import refuse_different

ROW = "row.json"
BENCH = "reproduce"
"""Name of the rows' file in results/."""
NO_CHANGE = {
    "data.folder", "model.classes", "model.vocab_size", "model.channels", "model.image_size", "model.pair",
    "train.budget_s", "train.steps", "train.eval_every", "train.eval_tokens", "train.save_every", "train.log_every",
    "train.keep",
}  # fmt: skip
"""Settings that the data decides, or that decide nothing but the length of a run and its records."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run with everything that its process must know."""

    plan: Plan
    spec: RunSpec
    place: Path
    """Its run folder."""
    data: str = ""
    """The folder of its examples; recall has none."""
    difference: str = ""
    """How these differ from the published ones."""
    device: str = "auto"
    at_once: int = 1
    """Runs that share the device."""

    def settings(self) -> Run:
        """The run's settings, with what its data decides."""
        run = self.plan.run_of(self.spec, self.data)
        if isinstance(run, MQARRun):
            return run
        from hgrn2.tasks.classify.run import fit_to_data

        return fit_to_data(run)


def finished(job: Job) -> Row | None:
    """The row of a run that has ended, None where it has not.

    Raises:
        UserError: it ended with other settings than it would have now; only its length may differ.
    """
    path = job.place / ROW
    if not path.exists():
        return None
    settings, config = job.settings(), job.place / "config.json"
    wanted, found = to_dict(settings), to_dict(from_dict(type(settings), read_json(config, dict), str(config)))
    parts = ("model", "data", "optim")
    asked, held = ({name: one.get(name) for name in parts} for one in (wanted, found))
    refuse_different(job.place, asked, held, "a finished run", "or another --out")
    return row_from(read_json(path, dict), str(path))


def execute(job: Job, *, quiet: bool) -> Row | None:
    """Train and measure; None after Ctrl-C, and the same call then goes on from the checkpoint.

    Raises:
        UserError: settings or data that do not fit, a folder with another run, a loss that is not finite.
    """
    run = job.settings()
    if isinstance(run, MQARRun):
        from hgrn2.tasks.mqar.run import train_mqar

        result: Any = train_mqar(run, job.place, device=job.device, quiet=quiet)
    else:
        from hgrn2.tasks.classify.run import train_classifier

        result = train_classifier(run, job.place, device=job.device, quiet=quiet)
    if result.interrupted:
        return None
    row = row_of(job, run, result.summary)
    write_json(job.place / ROW, to_dict(row))
    return row


def row_of(job: Job, run: Run, summary: dict[str, Any]) -> Row:
    """What the run came to, beside what was published."""
    from hgrn2.models.saved import usable_device

    spec, seconds = job.spec, summary["train_seconds"] + summary["eval_seconds"]
    published = RESULTS.get(spec.task, {}).get(spec.model)
    details = {
        "published_per_cent": published.per_cent if published else None,
        "published_source": published.source if published else None,
        "parameters": summary["parameters"],
        "steps": summary["steps"],
        "train_seconds": summary["train_seconds"],
        "device_minutes": round(seconds / 60 / job.at_once, 2),
        "at_once": job.at_once,
        "device": usable_device(job.device).type,
        "by_the_clock_s": run.train.budget_s or None,
    }
    if isinstance(run, MQARRun):
        value, more = _recall(run, summary)
    else:
        value, more = _classified(job, run, summary)
    case = {"table": spec.table, "task": spec.task, "size": spec.size, "n": spec.n, "seed": spec.seed}
    return measurement(BENCH, case, spec.model, "torch", [value], "accuracy", details | more)


def _classified(job: Job, run: ClassifyRun, summary: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    held_out = summary["held_out"]
    test, valid = held_out[run.data.test_split], held_out[run.data.valid_split]
    more = {
        "valid": valid["accuracy"], "examples": test["examples"], "epochs": summary["epochs"],
        "data": job.difference, "differs": differing(job.spec, run, summary["epochs"]), "changed": changed(job, run),
    }  # fmt: skip
    return test["accuracy"], more


def _recall(run: MQARRun, summary: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    ranked = hardest(run)
    by_segment = {f"{one['length']}x{one['pairs']}": one["accuracy"] for one in summary["held_out"].values()}
    more = {
        "accuracy": by_segment, "state_numbers": summary["state_numbers"], "measured": ranked.name,
        "data": "own generator, Zoology's settings and odds", "differs": _from_zoology(run),
    }  # fmt: skip
    return by_segment[f"{ranked.length}x{ranked.pairs}"], more


def differing(spec: RunSpec, run: ClassifyRun, epochs: float) -> str:
    """What is not as in HGRN2's published script, ours first; empty where nothing was published."""
    recipe = RECIPES.get(spec.task)
    if recipe is None:
        return ""
    config: Any = run.model
    pairs = {
        "layers": (config.layers, recipe.layers), "width": (config.width, recipe.width),
        "GLU": (config.glu_width / config.width, recipe.glu), "batch": (run.train.batch_size, recipe.batch),
        "norm": (config.norm, recipe.norm), "lr": (run.optim.lr, recipe.lr),
        "weight decay": (run.optim.weight_decay, recipe.weight_decay), "dropout": (config.dropout, recipe.dropout),
        "warm-up": (run.optim.warmup_steps, recipe.warmup), "epochs": (epochs, recipe.epochs),
        "positions": (config.positions, "some" if recipe.positions else "none"),
        "clip": (run.optim.clip, recipe.clip), "optimiser": (run.optim.optimizer, "adamw"),
        "tokens left out": (run.data.drop_tokens, 0.0),
        "first steps on easier examples": (run.data.curriculum.steps, 0),
    }  # fmt: skip
    if config.mixer.kind == "hgru2":
        pairs["n"] = (config.mixer.head_size, recipe.n)
        pairs["output gate"] = (config.mixer.output_gate, "none")
    if config.mixer.kind != "attention":
        pairs["direction"] = (config.mixer.direction, recipe.direction)
        pairs["separate scans"] = (config.mixer.separate_scans, False)
        pairs["local convolution"] = (config.mixer.local_width, 0)
    if config.positions != "none" and recipe.positions:
        del pairs["positions"]  # what its encoder adds is not published
    return _told(pairs)


def changed(job: Job, run: ClassifyRun) -> str:
    """What was set otherwise than in the table's own recipe; how long it was, its seed and its records left out."""
    spec = job.spec
    base = _flat(to_dict(Plan(table=job.plan.table, size=job.plan.size).run_of(replace(spec, seed=run.train.seed))))
    return ", ".join(f"{name}={value}" for name, value in _flat(to_dict(run)).items()
                     if name not in NO_CHANGE and base.get(name) != value)  # fmt: skip


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _from_zoology(run: MQARRun) -> str:
    from hgrn2.tasks.mqar.recipes import zoology

    base = zoology()
    return _told({
        "vocabulary": (run.model.vocab_size, base.model.vocab_size), "layers": (run.model.layers, base.model.layers),
        "width": (run.model.width, base.model.width), "training sets": (run.data.train, base.data.train),
        "steps": (run.train.steps, base.train.steps), "batch": (run.train.batch_size, base.train.batch_size),
        "weight decay": (run.optim.weight_decay, base.optim.weight_decay),
    })  # fmt: skip


def _told(pairs: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {_text(ours)} ({_text(theirs)})" for name, (ours, theirs) in pairs.items()
                     if ours != theirs)  # fmt: skip


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:,.6g}" if isinstance(value, int | float) and abs(value) >= 1 else str(value)
