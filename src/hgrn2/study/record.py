"""The rows of results/study.jsonl: which runs are finished, wherever they were trained."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hgrn2.files import read_json, write_json
from hgrn2.rows import Row, append, prepare_folder, read_rows
from hgrn2.settings import from_dict, refuse, to_dict
from hgrn2.study.protocol import Arm, Case

BENCH = "study"
"""Name of the rows' file in results/."""
ROW = "row.json"
"""Of a finished run, in its folder."""
OWN = ("optimizer", "lr", "seed", "tokens", "arm")
"""What tells the rows of one study from each other, beside their subject."""


def case_of(common: dict[str, Any], case: Case) -> dict[str, Any]:
    """What a row says was measured."""
    return common | {
        "optimizer": case.arm.optimizer, "lr": case.lr, "seed": case.seed, "tokens": case.tokens,
        "arm": list(case.arm.changes),
    }  # fmt: skip


def common_of(row: Row) -> dict[str, Any]:
    """What a row shares with all rows of its study."""
    return {name: value for name, value in row.case.items() if name not in OWN}


class Recorder:
    """The rows that a results folder has; a row that it has already is not added twice."""

    def __init__(self, results: Path) -> None:
        prepare_folder(results)
        self.results, self.rows = results, recorded(results)
        self._known = {_identity(row) for row in self.rows}

    def add(self, row: Row) -> bool:
        """Append a row, unless it was recorded before; returns whether it was not."""
        new = _identity(row) not in self._known
        if new:
            append(self.results, row)
            self.rows.append(row)
            self._known.add(_identity(row))
        return new

    def losses(self, common: dict[str, Any], arm: Arm) -> dict[tuple[float, int, int], float]:
        """Held-out loss by (rate, seed, tokens) of an arm's finished runs."""
        return losses(self.rows, common, arm)


def losses(rows: Iterable[Row], common: dict[str, Any], arm: Arm) -> dict[tuple[float, int, int], float]:
    """Held-out loss by (rate, seed, tokens) of an arm's finished runs; of a run that is there twice the newest."""
    return {
        (row.case["lr"], row.case["seed"], row.case["tokens"]): row.value
        for row in rows
        if row.bench == BENCH and row.subject == arm.subject and row.case["optimizer"] == arm.optimizer
        and row.case["arm"] == list(arm.changes) and common_of(row) == common
    }  # fmt: skip


def recorded(results: Path) -> list[Row]:
    """The rows of study.jsonl; none where there is no such file."""
    path = results / f"{BENCH}.jsonl"
    return [row for row in read_rows(path) if row.bench == BENCH] if path.exists() else []


def keep(place: Path, row: Row) -> None:
    """Write a row into its run folder."""
    write_json(place / ROW, to_dict(row))


def kept(out: Path) -> list[Row]:
    """The rows of all finished runs in the folder of a study."""
    return [from_dict(Row, read_json(path), str(path)) for path in sorted(out.glob(f"runs/*/{ROW}"))]


def collect(files: Sequence[Path], results: Path) -> tuple[int, int]:
    """Add the rows of other machines' study.jsonl (or the folders they lie in) to a results folder.

    Returns:
        How many rows are new, and how many were there already.

    Raises:
        UserError: a file that is missing or holds no rows of a study; nothing is added then.
    """
    found = []
    for path in files:
        path = path / f"{BENCH}.jsonl" if path.is_dir() else path
        refuse(not path.is_file(), f"{path} is no file of rows; give a study.jsonl or the folder that it lies in")
        rows = [row for row in read_rows(path) if row.bench == BENCH]
        refuse(not rows, f"{path} holds no row of a study")
        found += rows
    recorder = Recorder(results)
    new = sum([recorder.add(row) for row in found])
    return new, len(found) - new


def check_folder(out: Path, common: dict[str, Any]) -> None:
    """Remember in `out` what its runs have in common; a folder of other settings is a `UserError`."""
    from hgrn2.files import holds_nothing
    from hgrn2.train.same_run import refuse_different

    path, held = out / "study.json", {"kind": "study", **common}
    if path.exists():
        refuse_different(out, held, read_json(path, dict), "a study", "or another --out")
        return
    refuse(not holds_nothing(out), f"{out} holds other files; choose an empty or new folder for --out")
    write_json(path, held)


def _identity(row: Row) -> str:
    return str((row.subject, sorted((name, str(value)) for name, value in row.case.items()), row.value, row.date))
