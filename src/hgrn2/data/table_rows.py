"""Rows of tables as texts, streamed: Parquet files, and data sets of Hugging Face's library, local or from the hub.

Memory is bounded by a batch of rows; the libraries are loaded when the first table is read. A cell without text (null)
is skipped.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.files import open_regular
from hgrn2.settings import refuse

PREFIX = "hf:"
SAVED = ("dataset_dict.json", "dataset_info.json")
"""Files of a folder that `datasets` has saved: several splits, or one."""
ROWS = 256  # taken at once


def is_table(file: Path) -> bool:
    """Whether a file is read as Parquet."""
    return file.name.lower().endswith(".parquet")


def parquet_rows(file: Path, column: str, size: int) -> Iterator[tuple[list[str], float]]:
    """Texts of one column, about `size` characters at a time, and the share of the rows read so far."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"reading {file} needs pyarrow: pip install hgrn2[data]") from None
    try:
        with open_regular(file) as stream:
            table = parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
            _check_column(table.schema_arrow, column, str(file))
            total, done = max(1, table.metadata.num_rows), 0
            # One row group after the other: several at once would be decoded ahead.
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
                    done += batch.num_rows
                    for texts in _in_blocks([batch.column(0).to_pylist()], size):
                        yield texts, done / total
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged or is not Parquet: {_one_line(error)}") from None


@dataclass(frozen=True)
class Dataset:
    """A data set of the library `datasets`."""

    name: str
    """Of the hub, or a folder."""
    config: str | None
    split: str | None
    local: bool

    def __str__(self) -> str:
        return ":".join(part for part in ("hf", self.name, self.config, self.split) if part is not None)

    def rows(self, column: str, size: int) -> Iterator[list[str]]:
        """Texts of one column, about `size` characters at a time."""
        try:
            import datasets
        except ImportError:
            raise UserError(f"reading {self} needs the datasets library: pip install hgrn2[data]") from None
        datasets.disable_progress_bars()
        for library in ("datasets", "huggingface_hub"):  # what goes wrong is said once, below
            logging.getLogger(library).setLevel(logging.ERROR)
        try:
            found = self._load(datasets)
            columns = found.column_names
            refuse(
                columns is not None and column not in columns,
                f"{self}: there is no column {column!r} (columns: {', '.join(columns or ())}); choose one with --field",
            )
            for texts in _in_blocks((batch[column] for batch in found.iter(ROWS)), size):
                wrong = next((text for text in texts if not isinstance(text, str)), None)
                refuse(wrong is not None, f"{self}: column {column!r} is not text")
                yield texts
        except UserError:
            raise
        except Exception as error:  # of the file system, of the network, of whatever format the data set has
            raise UserError(f"{self} cannot be read: {_one_line(error)}") from None

    def _load(self, datasets: Any) -> Any:
        if not self.local:
            # Streamed: nothing is stored, and each of the two readings asks the hub.
            return datasets.load_dataset(self.name, self.config, split=self.split or "train", streaming=True)
        found = datasets.load_from_disk(self.name)
        if not isinstance(found, dict):
            refuse(self.split is not None, f"{self.name} has no splits: leave out {self.split!r}")
            return found
        listed = ", ".join(found)
        refuse(
            self.split is None and len(found) > 1,
            f"{self.name} has splits; choose one: hf:{self.name}:SPLIT, of {listed}",
        )
        split = self.split or next(iter(found), "")
        refuse(split not in found, f"{self.name} has no split {split!r}; it has {listed}")
        return found[split]


def dataset_of(spec: str) -> Dataset | None:
    """The data set that an input names, `hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT`, or that a folder holds;
    None for any other."""
    if not spec.startswith(PREFIX):
        saved = any((Path(spec) / name).is_file() for name in SAVED)
        return Dataset(spec, None, None, True) if saved else None
    name, *rest = spec.removeprefix(PREFIX).split(":")
    refuse(not name or len(rest) > 2 or not all(rest), f"{spec}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    config, split = rest if len(rest) == 2 else (None, rest[0] if rest else None)
    local = Path(name).is_dir()
    saved = any((Path(name) / file).is_file() for file in SAVED)
    refuse(local and not saved, f"{name} is not a data set that the datasets library saved; give its files instead")
    refuse(local and config is not None, f"{spec}: a saved data set has no configurations")
    return Dataset(name, config, split, local)


def _check_column(schema: Any, column: str, where: str) -> None:
    from pyarrow import types

    refuse(
        column not in schema.names,
        f"{where}: there is no column {column!r} (columns: {', '.join(schema.names) or 'none'}); "
        "choose one with --field",
    )
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    refuse(not text, f"{where}: column {column!r} is {kind}, not text")


def _in_blocks(batches: Iterable[list[Any]], size: int) -> Iterator[list[Any]]:
    """The texts of batches, about `size` characters at a time."""
    held: list[Any] = []
    length = 0
    for batch in batches:
        for text in batch:
            if text is not None:
                held.append(text)
                length += len(text) if isinstance(text, str) else 1
            if length >= size:
                yield held
                held, length = [], 0
    if held:
        yield held


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
