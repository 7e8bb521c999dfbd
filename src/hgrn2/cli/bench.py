"""`hgrn2 bench ops | train | decode | table`: speed on this machine, beside others, as rows in results/."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2.bench.settings import DecodeBench, OpsBench, TrainBench

if TYPE_CHECKING:
    from hgrn2.bench.record import Row

Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Progress = Callable[[str, int, int], None]
_flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


@_flat
@dataclass(frozen=True, kw_only=True)
class BenchOps(OpsBench):
    """Time every operator on every backend of this machine, forward and with its backward, beside causal attention.

    Each backend is first held to the float64 reference; where one is wrong nothing is recorded and the exit code is 1.

    Example: hgrn2 bench ops --ops hgru2 --shapes 8x512x256x64
    """

    out: Folder = Path("results")
    """The folder whose ops.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 where a backend is wrong."""
        from hgrn2.bench import ops

        try:
            _run(lambda record, progress: ops.measure(self, record, progress), self.out, self.json)
        except ops.WrongResult as wrong:
            print(f"{wrong}\nhgrn2: a backend misses the reference; nothing was recorded", file=sys.stderr)
            return 1
        return 0


@_flat
@dataclass(frozen=True, kw_only=True)
class BenchTrain(TrainBench):
    """Training tokens/s of HGRN2 beside transformers' Llama (SDPA) and Mamba of the same number of parameters.

    A step is forward, backward and AdamW in float32 on random tokens. All subjects take turns in one process, and for
    all alike the allocator keeps freed memory. A Mamba too slow for --max-seconds is estimated from 1 and 2 layers.

    Example: hgrn2 bench train --lengths 512 2048 --tokens 4096
    """

    out: Folder = Path("results")
    """The folder whose train.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import train

        _run(lambda record, progress: train.measure(self, record, progress), self.out, self.json)


@_flat
@dataclass(frozen=True, kw_only=True)
class BenchDecode(DecodeBench):
    """Decoding tokens/s and memory after a short and a long prompt, HGRN2 beside transformers' Llama and Mamba.

    Batch 1, greedy, float32; all subjects and contexts take turns. llama-hf-static is Llama with a cache allocated for
    the whole text beforehand.

    Example: hgrn2 bench decode --contexts 128 8192
    """

    out: Folder = Path("results")
    """The folder whose decode.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import decode

        rows = _run(lambda record, progress: decode.measure(self, record, progress), self.out, self.json)
        longest, shortest = max(self.contexts), min(self.contexts)
        for row in rows if longest > shortest and not self.json else ():
            if row.case["context"] == longest:
                ratio = row.details["of_shortest_context"]
                print(f"{row.subject} after {longest:,} tokens: {ratio:.3f} of its speed after {shortest:,}")


@dataclass(frozen=True, kw_only=True)
class BenchTable:
    """Turn the rows of a results folder into tables, as Markdown.

    Example: hgrn2 bench table --out docs/benchmarks.md
    """

    results: Folder = Path("results")
    """The folder with the rows, one .jsonl a bench."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: print it)")] = None
    """The Markdown file to write; it is replaced."""

    def run(self) -> None:
        from hgrn2.bench.record import read_folder
        from hgrn2.bench.table import markdown
        from hgrn2.files import write_text

        page = markdown(read_folder(self.results))
        if self.out is None:
            return print(page, end="")
        write_text(self.out, page)
        print(f"wrote {self.out}")


def _run(measure: "Callable[[Callable[[Row], None], Progress], None]", out: Path, as_json: bool) -> "list[Row]":
    """Measure, append every row to its file at once, and show them all at the end."""
    from hgrn2.bench.record import append, prepare_folder
    from hgrn2.settings import to_dict

    prepare_folder(out)
    rows: list[Row] = []

    def record(row: "Row") -> None:
        append(out, row)
        rows.append(row)

    with _progress() as progress:
        measure(record, progress)
    if as_json:
        print(json.dumps([to_dict(row) for row in rows], indent=2, ensure_ascii=False))
    else:
        _show(rows)
        print(f"{len(rows)} rows added to {out / rows[0].bench}.jsonl")
    return rows


def _show(rows: "list[Row]") -> None:
    from rich.console import Console

    from hgrn2.bench.table import rich_tables

    for table in rich_tables(rows):
        Console().print(table)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """What is going on, on standard error: a bar in a terminal, a line for each stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console, shown = Console(stderr=True), [""]
    if not console.is_terminal:

        def tell(stage: str, done: int, total: int) -> None:
            if stage != shown[0]:
                shown[0] = stage
                print(stage, file=sys.stderr, flush=True)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
