"""Recall runs that were trained elsewhere, one by one or on another machine, as rows of a sweep."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgrn2.files import holds_nothing, owned, read_json, write_json
from hgrn2.reproduce.recall import ROW, STUDY, plain, row_of
from hgrn2.reproduce.recall_settings import RunSpec
from hgrn2.rows import Row
from hgrn2.settings import from_dict, refuse, to_dict
from hgrn2.tasks.mqar.config import MQARRun
from hgrn2.tasks.mqar.recipes import name_of
from hgrn2.train.runs import read_finished

COLLECTION = "mqar-collection"


def collect(folders: Sequence[Path], folder: Path, recipe: str, record: Callable[[Row], Any]) -> int:
    """Make a row of every finished run among `folders`, with the machine that its environment.json describes; rows go
    to `record` and to `folder`, which `finished` reads. Of a run whose row is there already no second one is made.

    Returns:
        How many rows are new.

    Raises:
        UserError: a folder that is no finished recall run, or whose data, vocabulary, layers or start differ from the
            others'; nothing is recorded then.
    """
    found = [_read(one) for one in folders]
    common = _common(found, folders)
    new = 0
    with owned(folder):
        _prepare(folder, common)
        for run, summary, machine in found:
            spec = spec_of(run)
            place = folder / "cells" / spec.name / ROW
            if place.exists():
                continue
            row = row_of(recipe, spec, run, summary)
            row = replace(row, machine=machine, date=machine.get("date_utc", row.date))
            record(row)
            write_json(place, to_dict(row))
            new += 1
    return new


def spec_of(run: MQARRun) -> RunSpec:
    """Where a run stands in a sweep."""
    name, sized = name_of(run.model)
    size = run.model.mixer.head_size if sized else None
    return RunSpec(model=name, width=run.model.width, head_size=size, lr=run.optim.lr, seed=run.train.seed)


def _read(folder: Path) -> tuple[MQARRun, dict[str, Any], dict[str, Any]]:
    values, summary, machine = read_finished(folder)
    refuse(values.get("kind") != "mqar", f"{folder} holds another kind of run than recall")
    return from_dict(MQARRun, values, str(folder / "config.json")), summary, machine


def _common(found: list[tuple[MQARRun, dict[str, Any], dict[str, Any]]], folders: Sequence[Path]) -> dict[str, Any]:
    """What all runs must share for their accuracies to be compared."""
    names: dict[str, Path] = {}
    values = []
    for (run, _, _), folder in zip(found, folders, strict=True):
        same = {"vocab_size": run.model.vocab_size, "layers": run.model.layers, "memory": run.model.init.memory}
        values.append({"data": to_dict(run.data), **same})
        different = [name for name, value in values[-1].items() if value != values[0][name]]
        refuse(bool(different), f"{folder} has another {' and '.join(different)} than {folders[0]}; collect them apart")
        twin = names.setdefault(spec_of(run).name, folder)
        refuse(len(names) < len(values), f"{twin} and {folder} are the same run, {spec_of(run).name}; give one of them")
    return {"kind": COLLECTION, **values[0]}


def _prepare(folder: Path, common: dict[str, Any]) -> None:
    path = folder / STUDY
    if path.exists():
        held = read_json(path, dict)
        refuse(held.get("kind") != COLLECTION, f"{folder} holds a study that trains its own runs; use another --out")
        refuse(held != plain(common), f"{folder} holds runs with other settings; use another --out")
        return
    refuse(not holds_nothing(folder), f"{folder} holds other files; choose an empty or new --out")
    write_json(path, common)
