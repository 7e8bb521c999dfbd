"""`hgrn2 bench ops | train | decode | table`: speed on this machine, beside others, as rows in results/."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hgrn2.bench.size import Size

if TYPE_CHECKING:
    from hgrn2.bench.record import Row

Flag = tyro.conf.FlagCreatePairsOff[bool]
Op = Literal["hgru2", "gated_outer_scan", "gated_scan", "causal_conv"]
Backend = Literal["native", "chunked", "reference"]
Trained = Literal["hgrn2", "llama-hf", "mamba-hf"]
Decoded = Literal["hgrn2", "llama-hf", "llama-hf-static", "mamba-hf"]


@dataclass(frozen=True, kw_only=True)
class BenchOps:
    """Time every operator on every backend of this machine, forward and with its backward, beside causal attention.

    Each backend is first held to the float64 reference; where one is wrong nothing is recorded and the exit code is 1.

    Example: hgrn2 bench ops --ops hgru2 --shapes 8x512x256x64
    """

    ops: tuple[Op, ...] = ("hgru2", "gated_outer_scan", "gated_scan", "causal_conv")
    """Which operators."""
    backends: Annotated[tuple[Backend, ...], tyro.conf.arg(help_behavior_hint="(default: all that can serve)")] = ()
    """Which backends."""
    shapes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="BxTxDxn [BxTxDxn ...]")] = (
        "8x512x256x64",
        "2x2048x256x64",
        "4x1024x512x128",
    )
    """Sequences, tokens, channels, head size."""
    repeats: int = 9
    """Timed rounds; every backend has its turn in each."""
    max_seconds: float = 10.0
    """Of a backend at a shape, after which it is not repeated again."""
    threads: int | None = None
    """To compute with; default: PyTorch's choice."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    """The folder whose ops.jsonl gets the rows."""
    json: Flag = False
    """Print the rows as JSON."""

    def run(self) -> int:
        from hgrn2.bench import ops

        bench = ops.OpsBench(
            ops=self.ops, backends=self.backends, shapes=self.shapes, repeats=self.repeats,
            max_seconds=self.max_seconds, threads=self.threads,
        )  # fmt: skip
        try:
            _run(lambda record, progress: ops.measure(bench, record, progress), self.out, self.json)
        except ops.WrongResult as wrong:
            print(f"{wrong}\nhgrn2: a backend misses the reference; nothing was recorded", file=sys.stderr)
            return 1
        return 0


@dataclass(frozen=True, kw_only=True)
class BenchTrain:
    """Training tokens/s of HGRN2 beside transformers' Llama (SDPA) and Mamba of the same number of parameters.

    A step is forward, backward and AdamW in float32 on random tokens. All subjects take turns in one process, and for
    all alike the allocator keeps freed memory. A Mamba too slow for --max-seconds is estimated from 1 and 2 layers.

    Example: hgrn2 bench train --lengths 512 2048 --tokens 4096
    """

    subjects: tuple[Trained, ...] = ("hgrn2", "llama-hf", "mamba-hf")
    """Which models."""
    size: tyro.conf.OmitArgPrefixes[Size] = field(default_factory=Size)
    lengths: tuple[int, ...] = (512, 2048)
    """Tokens of a sequence."""
    tokens: int = 4096
    """Tokens of a step, at every length."""
    repeats: int = 5
    """Timed rounds; every subject has its turn in each."""
    max_seconds: float = 60.0
    """Of a subject at a length, after which it is not repeated again."""
    compile: Flag = False
    """Use torch.compile, for every subject."""
    threads: int | None = None
    """To compute with; default: PyTorch's choice."""
    seed: int = 0
    """Of weights and tokens."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    """The folder whose train.jsonl gets the rows."""
    json: Flag = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import train

        bench = train.TrainBench(
            size=self.size, subjects=self.subjects, lengths=self.lengths, tokens=self.tokens, repeats=self.repeats,
            max_seconds=self.max_seconds, compile=self.compile, threads=self.threads, seed=self.seed,
        )  # fmt: skip
        _run(lambda record, progress: train.measure(bench, record, progress), self.out, self.json)


@dataclass(frozen=True, kw_only=True)
class BenchDecode:
    """Decoding tokens/s and memory after a short and a long prompt, HGRN2 beside transformers' Llama and Mamba.

    Batch 1, greedy, float32; all subjects and contexts take turns. llama-hf-static is Llama with a cache allocated for
    the whole text beforehand.

    Example: hgrn2 bench decode --contexts 128 8192
    """

    subjects: tuple[Decoded, ...] = ("hgrn2", "llama-hf", "llama-hf-static", "mamba-hf")
    """Which models."""
    size: tyro.conf.OmitArgPrefixes[Size] = field(default_factory=Size)
    contexts: tuple[int, ...] = (128, 8192)
    """Tokens of the prompt."""
    tokens: int = 200
    """Tokens decoded after it; a repeat is their median."""
    repeats: int = 5
    """Timed rounds; every subject and context has its turn in each."""
    max_seconds: float = 60.0
    """Of a subject at a context, after which it is not repeated again."""
    threads: int | None = None
    """To compute with; default: PyTorch's choice."""
    seed: int = 0
    """Of weights and tokens."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
    """The folder whose decode.jsonl gets the rows."""
    json: Flag = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import decode

        bench = decode.DecodeBench(
            size=self.size, subjects=self.subjects, contexts=self.contexts, tokens=self.tokens, repeats=self.repeats,
            max_seconds=self.max_seconds, threads=self.threads, seed=self.seed,
        )  # fmt: skip
        rows = _run(lambda record, progress: decode.measure(bench, record, progress), self.out, self.json)
        longest, shortest = max(self.contexts), min(self.contexts)
        for row in rows:
            if row.subject == "hgrn2" and row.case["context"] == longest > shortest and not self.json:
                ratio = row.details["speed_of_shortest_context"]
                print(f"hgrn2 after {longest:,} tokens runs at {ratio:.3f} of its speed after {shortest:,}")


@dataclass(frozen=True, kw_only=True)
class BenchTable:
    """Turn the rows of a results folder into tables, as Markdown.

    Example: hgrn2 bench table --out docs/benchmarks.md
    """

    results: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results")
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


def _run(measure: "Callable[[Callable[[Row], None], Any], None]", out: Path, as_json: bool) -> "list[Row]":
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
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """One bar on standard error for what is going on now; standard output stays for the result."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
