"""The sweep over recall: one folder and one row per run, finished runs are skipped, and their summary."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrn2.files import holds_nothing, owned, read_json, write_json
from hgrn2.progress import Progress, silent
from hgrn2.reproduce.recall_settings import MQARStudy, RunSpec, hardest
from hgrn2.rows import Row, measurement, row_from
from hgrn2.settings import refuse, to_dict
from hgrn2.tasks.mqar.config import MQARRun, segment
from hgrn2.tasks.mqar.run import train_mqar
from hgrn2.train.same_run import refuse_different

STUDY, ROW = "study.json", "row.json"


@dataclass(frozen=True)
class Point:
    """A model in one size at its best learning rate."""

    model: str
    width: int
    head_size: int | None
    state_numbers: int
    parameters: int
    lr: float
    accuracy: dict[str, tuple[float, ...]]
    """By test segment, `LENGTHxPAIRS`; one value a seed."""


def run_study(
    study: MQARStudy, folder: Path, record: Callable[[Row], Any], *, device: str = "auto", progress: Progress = silent
) -> bool:
    """Make every run of the sweep that `folder` does not hold yet; its row goes to `record`.

    Returns:
        Whether the sweep is complete; after Ctrl-C it is not, and the current run goes on from its checkpoint.

    Raises:
        UserError: a folder that holds other files or a sweep with other settings; a run whose model cannot be built,
        before
            anything is trained.
    """
    runs = {spec: study.run_of(spec) for spec in study.specs()}
    with owned(folder):
        return _run(study, runs, folder, record, device, progress)


def _run(
    study: MQARStudy, runs: dict[RunSpec, MQARRun], folder: Path, record: Callable[[Row], Any], device: str,
    progress: Progress,
) -> bool:  # fmt: skip
    """Make the runs in a folder that no other process works in."""
    _prepare(study, folder)
    for number, (spec, run) in enumerate(runs.items()):
        progress(f"{spec.label}, lr {spec.lr:g}, seed {spec.seed}", number, len(runs))
        place = folder / "cells" / spec.name
        if (place / ROW).exists():
            continue
        result = train_mqar(run, place, device=device, quiet=True)
        if result.interrupted:
            return False
        row = row_of(study.recipe, spec, run, result.summary)
        record(row)
        write_json(place / ROW, to_dict(row))
    return True


def finished(folder: Path) -> list[Row]:
    """The rows of all runs that a sweep's folder holds, in the order of their names."""
    return [row_from(read_json(path, dict), str(path)) for path in sorted(folder.glob(f"cells/*/{ROW}"))]


def best(rows: list[Row]) -> list[Point]:
    """Of every model and size the learning rate with the highest mean accuracy over its seeds; small states first."""
    groups: dict[tuple[str, int, int], dict[float, list[Row]]] = {}
    for row in rows:
        size = (row.subject, row.details["width"], row.details["head_size"] or 0)
        groups.setdefault(size, {}).setdefault(row.details["lr"], []).append(row)
    points = []
    for (model, width, head_size), by_lr in groups.items():
        lr, seeds = max(by_lr.items(), key=lambda item: sum(row.value for row in item[1]) / len(item[1]))
        names = seeds[0].details["accuracy"]
        points.append(Point(
            model, width, head_size or None, seeds[0].details["state_numbers"], seeds[0].details["parameters"], lr,
            {name: tuple(row.details["accuracy"][name] for row in seeds) for name in names},
        ))  # fmt: skip
    return sorted(points, key=lambda one: (one.model, one.width, one.state_numbers))


def markdown(points: list[Point]) -> str:
    """The points as a table; accuracies are means over seeds."""
    if not points:
        return "Nothing is finished yet.\n"
    names = list(points[0].accuracy)
    head = ["model", "D", "n", "state numbers", "parameters", "learning rate", "seeds"]
    head += ["{} tokens, {} pairs".format(*name.split("x")) for name in names]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(columns(point)) + " |" for point in points]
    return "\n".join(lines) + "\n"


def columns(point: Point) -> list[str]:
    """One line of the table."""
    seeds = len(next(iter(point.accuracy.values())))
    found = [point.model, str(point.width), str(point.head_size or "–"), f"{point.state_numbers:,}"]
    found += [f"{point.parameters:,}", f"{point.lr:g}", str(seeds)]
    return found + [f"{sum(values) / len(values):.1%}" for values in point.accuracy.values()]


def _prepare(study: MQARStudy, folder: Path) -> None:
    """Only the grid of a sweep may change from call to call; what its runs have in common may not."""
    path, common = folder / STUDY, {"kind": "mqar-study", "base": to_dict(study.base())}
    if path.exists():
        refuse_different(folder, common, read_json(path, dict), "a study", "or another --out")
        return
    refuse(not holds_nothing(folder), f"{folder} holds other files; choose an empty or new folder for --out")
    write_json(path, common)


def plain(value: Any) -> Any:
    """Settings as JSON gives them back: tuples are lists."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def row_of(recipe: str, spec: RunSpec, run: MQARRun, summary: dict[str, Any]) -> Row:
    """What a finished run is in results/mqar.jsonl, measured on this machine."""
    accuracy = {f"{one['length']}x{one['pairs']}": one["accuracy"] for one in summary["held_out"].values()}
    ranked = hardest(run)
    case = {
        "recipe": recipe, "vocab_size": run.model.vocab_size, "layers": run.model.layers,
        "train": list(run.data.train), "steps": summary["steps"], "batch": run.train.batch_size,
        "precision": run.train.precision, "tokens": ranked.length, "pairs": ranked.pairs,
        "width": spec.width, "n": spec.head_size, "lr": spec.lr, "seed": spec.seed, "memory": run.model.init.memory,
    }  # fmt: skip
    details = {
        "width": spec.width, "head_size": spec.head_size, "lr": spec.lr, "seed": spec.seed,
        "state_numbers": summary["state_numbers"], "parameters": summary["parameters"], "accuracy": accuracy,
        "examples": {f"{one.length}x{one.pairs}": one.examples for one in map(segment, run.data.test)},
        "train_seconds": summary["train_seconds"],
    }  # fmt: skip
    value = accuracy[f"{ranked.length}x{ranked.pairs}"]
    return measurement("mqar", case, spec.model, "torch", [value], "accuracy", details)
