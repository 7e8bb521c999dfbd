"""One measurement is one JSON row, appended to results/<bench>.jsonl with the machine it was taken on."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hgrn2.environment import environment
from hgrn2.files import parse_json, read_text
from hgrn2.settings import from_dict, refuse, to_dict

OLD_UNITS = {"share right": "accuracy", "nats a token": "nats/token"}
OLD_BENCHES = {"ceilings": "peaks"}
OLD_SUBJECTS = {"walk": "sequential"}
"""Words of rows written before, and those that stand for them now."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement of one model or implementation in one case."""

    bench: str
    """ops, train, decode: also the name of the file."""
    case: dict[str, Any]
    """Shapes, sizes, options. The same for everything that is compared."""
    subject: str
    """What was measured: hgrn2, or a baseline such as llama-hf, mamba-hf, sdpa."""
    backend: str
    """Its backend: native, chunked, reference, torch."""
    value: float
    """The median, which tables show."""
    unit: str
    median: float
    low: float
    """20 % of the repeats lie at or below it (linear interpolation)."""
    high: float
    """80 % of the repeats lie at or below it."""
    repeats: int
    details: dict[str, Any] = field(default_factory=dict)
    """What else is known: parameters, bytes, conditions of the process."""
    machine: dict[str, Any]
    """`hgrn2.environment.environment()`."""
    date: str
    """UTC."""


def measurement(
    bench: str, case: Mapping[str, Any], subject: str, backend: str, samples: Sequence[float], unit: str,
    details: Mapping[str, Any] | None = None,
) -> Row:  # fmt: skip
    """The row of a measurement that was repeated; `samples` are in `unit`."""
    middle = statistics.median(samples)
    low, high = _fifths(samples)
    return Row(
        bench=bench,
        case=dict(case),
        subject=subject,
        backend=backend,
        value=middle,
        unit=unit,
        median=middle,
        low=low,
        high=high,
        repeats=len(samples),
        details=dict(details or {}),
        machine=environment(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _fifths(samples: Sequence[float]) -> tuple[float, float]:
    if len(samples) < 2:
        return samples[0], samples[0]
    cuts = statistics.quantiles(samples, n=5, method="inclusive")
    return cuts[0], cuts[-1]


def prepare_folder(folder: Path) -> None:
    """Make sure that rows can be written, before minutes are spent on measuring them."""
    refuse(folder.exists() and not folder.is_dir(), f"{folder} is a file; --out must name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    refuse(not os.access(folder, os.W_OK), f"{folder} cannot be written to")


def append(folder: Path, row: Row) -> Path:
    """Add a row to the file of its bench; rows of processes that write at once stay whole.

    The line is written by one call to a file opened for appending, which the system does not interleave. Where a crash
    left half a line at the end, the row begins on a new one.
    """
    path = folder / f"{row.bench}.jsonl"
    line = json.dumps(to_dict(row), ensure_ascii=False, allow_nan=False) + "\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = (("\n" if torn else "") + line).encode()
        written = os.write(handle, data)
        if written != len(data):
            os.ftruncate(handle, size)
            raise OSError(28, "no space is left for the row", str(path))
        os.fsync(handle)
    finally:
        os.close(handle)
    return path


def read_rows(path: Path) -> list[Row]:
    """The measurements in a file, oldest first; objects without `bench` belong to others and are left out."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        values = parse_json(line, f"{path}, line {number}")
        if isinstance(values, dict) and "bench" in values:
            rows.append(row_from(values, f"{path}, line {number}"))
    return rows


def row_from(values: Mapping[str, Any], where: str) -> Row:
    """The row of a JSON object, in today's words also where an earlier version wrote it.

    Raises:
        UserError: no row; `where` says what was read.
    """
    row = from_dict(Row, dict(values), where)
    return replace(
        row,
        bench=OLD_BENCHES.get(row.bench, row.bench),
        subject=OLD_SUBJECTS.get(row.subject, row.subject),
        unit=OLD_UNITS.get(row.unit, row.unit),
    )


def read_folder(folder: Path) -> list[Row]:
    """The measurements in all .jsonl files of a folder, files by name."""
    refuse(not folder.is_dir(), f"{folder} is not a folder of results; run hgrn2 bench ops, train or decode first")
    return [row for path in sorted(folder.glob("*.jsonl")) for row in read_rows(path)]
