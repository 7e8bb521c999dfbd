"""One's own labelled examples: the columns of tables as texts or sequences of numbers, with labels of any kind."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hgrn2.data.permutation import keys, permute
from hgrn2.data.tables import Row, read_table
from hgrn2.errors import UserError, did_you_mean
from hgrn2.settings import refuse, shown

InputKind = Literal["text", "numbers"]
TEXT_NAMES = (
    "text", "review", "sentence", "content", "message", "body", "comment", "tweet", "description", "title", "sequence",
    "values", "series", "numbers", "input", "x",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "tag", "intent", "topic", "rating", "stars",
    "output", "y",
)  # fmt: skip
MOST_CLASSES = 1000
LOOKED_AT = 50  # rows from which it is seen whether a column holds numbers


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table are what."""

    inputs: tuple[str, ...]
    """One column of texts or of sequences, or the columns whose numbers are the steps of a sequence."""
    label: str
    kind: InputKind


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Examples as they stand in files."""

    inputs: list[Any]
    """Texts, or sequences of numbers float32 [T,C]."""
    labels: list[str]
    """Empty where labels were not asked for."""
    where: list[str]
    """File and row of each."""
    left_out: int = 0
    """Rows without an input or a label, where such rows are left out."""

    def __len__(self) -> int:
        return len(self.inputs)


def choose_columns(
    rows: Sequence[Row], inputs: Sequence[str] = (), label: str | None = None, kind: InputKind | None = None
) -> Columns:
    """The columns to read: those named, else guessed by their usual names.

    Of two columns of which one is known the other is the other. Where no column has a name of an input and all but the
    label hold numbers, they are the steps of a sequence. What a column holds is seen from the first rows.
    """
    names, where = list(rows[0].fields), rows[0].where.partition(",")[0]
    for name in (*inputs, *([label] if label is not None else [])):
        if name not in names:
            near = did_you_mean(name, names)
            raise UserError(f"{where} has no column {name!r}{near} (columns: {', '.join(map(str, names))})")
    if label is None:
        label = _named(LABEL_NAMES, [name for name in names if name not in inputs])
    rest = [name for name in names if name != label]
    if not inputs:
        guess = _named(TEXT_NAMES, rest)
        inputs = (guess,) if guess is not None else tuple(rest)
    if label is None:
        others = [name for name in names if name not in inputs]
        label = others[0] if len(others) == 1 else None
    if label is None or (len(inputs) > 1 and not _hold_numbers(rows, inputs)):
        _cannot(where, names)
    assert label is not None
    chosen = tuple(inputs)
    refuse(label in chosen, f"column {label!r} is both input and label")
    refuse(not chosen, f"{where} has no column beside the label {label!r}")
    if kind is None:
        first = next(iter(chosen))
        kind = "numbers" if len(chosen) > 1 or _hold_sequences(rows, first) else "text"
    refuse(kind == "text" and len(chosen) > 1, f"texts are in one column, not in {len(chosen)}")
    return Columns(inputs=chosen, label=label, kind=kind)


def _cannot(where: str, names: list[str]) -> None:
    listed = ", ".join(map(str, names))
    raise UserError(
        f"{where}: which column is the label, which the text? Say --label-column and --text-column (columns: {listed})"
    )


def _named(known: tuple[str, ...], names: Sequence[str]) -> str | None:
    lower = {str(name).strip().lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)


def _hold_numbers(rows: Sequence[Row], columns: Sequence[str]) -> bool:
    return all(_number(row.fields.get(name)) is not None for row in rows[:LOOKED_AT] for name in columns)


def _hold_sequences(rows: Sequence[Row], column: str) -> bool:
    for row in rows[:LOOKED_AT]:
        value = row.fields.get(column)
        if isinstance(value, str) and (_sequence(value) is None or len(value.split()) + value.count(",") < 2):
            return False
        if not isinstance(value, (str, list)):
            return False
    return True


def read_labelled(
    paths: Sequence[Path], columns: Columns, *, header: bool = True, bad: Literal["stop", "skip"] = "stop",
    labels: bool = True, tables: dict[Path, list[Row]] | None = None,
) -> Labelled:  # fmt: skip
    """The examples of several files.

    Args:
        paths: see `hgrn2.data.tables`.
        columns: which must be in every file.
        header: of CSV files.
        bad: what a row without input or label, or with numbers that are none, does: end it all, or be left out.
        labels: whether labels are asked for.
        tables: files that have been read already.
    """
    inputs, found, where, left_out = [], [], [], 0
    channels: int | None = None
    for path in paths:
        for row in (tables or {}).get(path) or read_table(path, header=header):
            try:
                value = _input(row, columns)
                label = _label(row, columns.label) if labels else ""
            except UserError as error:
                refuse(bad == "stop", f"{error}; --bad skip leaves such rows out")
                left_out += 1
                continue
            if columns.kind == "numbers":
                channels = channels or value.shape[1]
                same = value.shape[1] == channels
                refuse(not same, f"{row.where} has {value.shape[1]} numbers per step, rows before it have {channels}")
            inputs.append(value)
            where.append(row.where)
            found += [label] if labels else []
    refuse(not inputs, f"{', '.join(map(str, paths))}: no row could be used")
    return Labelled(inputs=inputs, labels=found, where=where, left_out=left_out)


def _input(row: Row, columns: Columns) -> Any:
    values = []
    for name in columns.inputs:
        missing = name not in row.fields
        refuse(missing, f"{row.where} has no field {name!r} (fields: {', '.join(map(str, row.fields))})")
        values.append(row.fields[name])
    if columns.kind == "text":
        return _text(values[0], row.where, columns.inputs[0])
    sequence = _sequence(values if len(values) > 1 else values[0])
    if sequence is None:
        wanted = "numbers" if len(values) > 1 else f"a sequence of numbers in {columns.inputs[0]!r}"
        raise UserError(
            f"{row.where}: {wanted} must stand there, not {shown(values if len(values) > 1 else values[0])}"
        )
    return sequence


def _text(value: Any, where: str, column: str) -> str:
    value = "" if value is None else value
    refuse(isinstance(value, (list, dict, bool)), f"{where}: {column!r} is no text but {shown(value)}")
    text = str(value)
    refuse(not text.strip(), f"{where}: the text ({column!r}) is empty")
    return text


def _label(row: Row, column: str) -> str:
    value = row.fields.get(column)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    refuse(isinstance(value, (list, dict)), f"{row.where}: the label ({column!r}) is {shown(value)}; give one per row")
    text = "" if value is None else str(value).strip()
    refuse(not text, f"{row.where}: the label ({column!r}) is empty")
    return text


def _sequence(value: Any) -> np.ndarray | None:
    """Numbers float32 [T,C] of a list, a list of lists, or a text of either; None where it is something else."""
    if isinstance(value, str):
        if value.count("[") > 1:
            try:
                value = json.loads(value)
            except ValueError:
                return None
        else:
            value = re.split(r"[\s,;|]+", value.strip().strip("[]()").strip())
    if not isinstance(value, list) or not value:
        return None
    steps = [step if isinstance(step, list) else [step] for step in value]
    if not steps[0] or any(len(step) != len(steps[0]) for step in steps):
        return None
    numbers = [[_number(one) for one in step] for step in steps]
    if any(one is None for step in numbers for one in step):
        return None
    return np.asarray(numbers, dtype=np.float32)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 3e38 else None


def classes_of(labels: Sequence[str], column: str) -> tuple[str, ...]:
    """The classes, by number where all labels are numbers, else by name; refuses what is no classification."""
    counts = Counter(labels)
    refuse(len(counts) < 2, f"every row has the label {next(iter(counts))!r}; it takes two classes to learn anything")
    many = len(counts) > MOST_CLASSES or (len(counts) > 20 and 2 * len(counts) > len(labels))
    hint = "; is it the label?" if many else ""
    refuse(many, f"column {column!r} has {len(counts):,} different values in {len(labels):,} rows{hint}")
    numbers = [_number(name) for name in counts]
    if all(number is not None for number in numbers):
        return tuple(sorted(counts, key=lambda name: (float(name), name)))
    return tuple(sorted(counts))


def numbers_of(labelled: Labelled, classes: Sequence[str]) -> np.ndarray:
    """Class numbers int64 [N]; a label that is none of the classes is a `UserError` that names its row."""
    known = {name: number for number, name in enumerate(classes)}
    for label, where in zip(labelled.labels, labelled.where, strict=True):
        if label not in known:
            raise UserError(f"{where}: the label {label!r} does not occur in the training data")
    return np.array([known[label] for label in labelled.labels], dtype=np.int64)


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """bool [N]: of each class the share that is held out, at random, but never its last example."""
    refuse(not 0 < fraction < 1, f"the held-out fraction is {fraction}; it must lie between 0 and 1")
    held = np.zeros(len(labels), dtype=bool)
    for number in range(int(labels.max()) + 1):
        places = np.flatnonzero(labels == number)
        count = min(max(1, round(fraction * len(places))), len(places) - 1) if len(places) else 0
        order = permute(np.arange(len(places)), len(places), keys(seed, np.array([number]))) if len(places) else places
        held[places[order < count]] = True
    refuse(not held.any(), "no class has two examples: nothing can be held out; give --valid FILE")
    return held
