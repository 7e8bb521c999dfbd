"""Rows of tables: CSV, TSV, JSON and JSONL files (each also .xz or .gz), one after the other, each with its place."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hgrn2.data.reading import decode_text, open_binary, plain_name
from hgrn2.errors import UserError
from hgrn2.files import parse_json
from hgrn2.settings import refuse

SEPARATED = (".csv", ".tsv")
ENDINGS = (*SEPARATED, ".jsonl", ".ndjson", ".json")
DELIMITERS = (",", ";", "\t", "|")
FIELD_LIMIT = 1 << 28  # characters of one cell; the library's own limit of 128 KiB is less than a long text
FILE_LIMIT = 1 << 33


class Row(NamedTuple):
    """A row of a table."""

    where: str
    """File and row (the header is row 1) or line, for messages."""
    fields: dict[str, Any]
    """By column: texts, or of JSON any value."""


def is_table(path: Path) -> bool:
    """Whether a file's name says that it is one of these tables."""
    return plain_name(path).endswith(ENDINGS)


def read_table(path: Path, *, header: bool = True) -> list[Row]:
    """All rows of a file.

    Args:
        path: by its name what it is. The separator of a .csv is the comma, semicolon, tab or bar that its first row has
            most of.
        header: the first row of a CSV file names the columns; without it they are named 1, 2, 3.

    Raises:
        UserError: no such file, another kind of file, rows of unequal length, broken quoting or JSON; names the row.
    """
    refuse(path.is_dir(), f"{path} is a folder; name the files in it")
    refuse(not is_table(path), f"{path} is no table; give {', '.join(ENDINGS)}, each also as .xz or .gz")
    with open_binary(path) as opened:
        data = opened.stream.read(FILE_LIMIT + 1)
    refuse(len(data) > FILE_LIMIT, f"{path} has more than {FILE_LIMIT:,} bytes; tables are held in memory")
    text = decode_text(data, path).replace("\r\n", "\n").replace("\r", "\n")
    name = plain_name(path)
    rows = list(_separated(text, path, header) if name.endswith(SEPARATED) else _objects(text, path))
    refuse(not rows, f"{path} holds no rows")
    return rows


def _separated(text: str, path: Path, header: bool) -> Iterator[Row]:
    csv.field_size_limit(FIELD_LIMIT)
    delimiter = "\t" if plain_name(path).endswith(".tsv") else _delimiter(text)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    number = 0
    try:
        for number, cells in enumerate(records, start=1):
            if not any(cell.strip() for cell in cells):
                continue  # an empty line, or a row of empty cells, as spreadsheets leave them at the end
            if columns is None:
                columns = _columns(cells, path) if header else [str(n) for n in range(1, len(cells) + 1)]
                if header:
                    continue
            hint = "; is a text with the separator in it not in quotes?" if len(cells) > len(columns) else ""
            wrong = len(cells) != len(columns)
            refuse(wrong, f"{path}, row {number} has {len(cells)} cells, the first has {len(columns)}{hint}")
            yield Row(f"{path}, row {number}", dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}: {error}") from None


def _columns(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    double = next((name for n, name in enumerate(names) if name in names[:n]), None)
    refuse(double is not None, f"{path} has two columns named {double!r}; if it has no header, say --no-header")
    return names


def _delimiter(text: str) -> str:
    """The separator that the first row has most of, quoted parts left out."""
    first = next((line for line in text.split("\n", 50) if line.strip()), "")
    outside = "".join(first.split('"')[::2])
    return max(DELIMITERS, key=outside.count)


def _objects(text: str, path: Path) -> Iterator[Row]:
    if plain_name(path).endswith(".json") and text.lstrip().startswith("["):
        values = parse_json(text, str(path), list)
        for number, value in enumerate(values, start=1):
            yield _row(value, f"{path}, entry {number}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _row(parse_json(line, where), where)


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f'{where} is not a JSON object, such as {{"text": "...", "label": "good"}}')
    return Row(where, value)
