"""`hgrn2 bench ops | train | decode | onnx | table`: speed on this machine, beside baselines, as rows in results/."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2 import console
from hgrn2.bench.onnx_settings import OnnxBench
from hgrn2.bench.settings import DecodeBench, Decoded, OpsBench, TrainBench, Trained
from hgrn2.cli.progress import progress_shown
from hgrn2.progress import Progress

if TYPE_CHECKING:
    from hgrn2.rows import Row

Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


@flat
@dataclass(frozen=True, kw_only=True)
class BenchOps(OpsBench):
    """Time every operator on every backend of this machine, forward and with its backward, beside its baselines.

    Every result is first compared with the float64 reference; what is outside its tolerance gets no row, and the exit
    code is 1.

    Example: hgrn2 bench ops --ops hgru2 --shapes 8x512x256x64
    Example: hgrn2 bench ops --device cuda --ops hgru2 --against sdpa,fla
    """

    out: Folder = Path("results")
    """The folder whose ops.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""
    tune: bool = False
    """Instead, measure the launch settings of the Triton kernels on this GPU and write the table that calls read."""
    table: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the package's)")] = None
    """Where --tune writes; rows about other GPUs, head sizes and dtypes stay."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 where a result is wrong."""
        if self.tune:
            return _tune(self, self.table)
        from hgrn2.bench import ops

        wrong: list[str] = []
        run_bench(lambda record, progress: wrong.extend(ops.measure(self, record, progress)), self.out, self.json)
        for line in wrong:
            print(line, file=sys.stderr)
        if wrong:
            print("hgrn2: what is named above was not recorded", file=sys.stderr)
        return 1 if wrong else 0


@flat
@dataclass(frozen=True, kw_only=True)
class BenchTrain(TrainBench):
    """Training tokens/s of HGRN2 beside transformers' Llama (SDPA) and Mamba of the same number of parameters.

    A step is forward, backward and AdamW in one precision on random tokens. The models take turns in one process, with
    the same --compile, and the allocator keeps freed memory for all of them. A Mamba too slow for --max-seconds is
    estimated from 1 and 2 layers. mfu is the share of the matrix product rate measured in the same run.

    Example: hgrn2 bench train --lengths 512 2048 --tokens 4096
    Example: hgrn2 bench train --device cuda --preset 374m --tokens 32768 --lengths 2048 --against sdpa --compile blocks
    """

    models: Annotated[tuple[Trained, ...], tyro.conf.arg(aliases=["--subjects"])] = TrainBench.models
    """Which models."""
    model_seconds: Annotated[float, tyro.conf.arg(aliases=["--subject-seconds"])] = TrainBench.model_seconds
    """On a GPU: the time limit of one model, compiling and tuning included."""
    out: Folder = Path("results")
    """The folder whose train.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 where a model failed on a GPU."""
        from hgrn2.bench import train

        failed: list[str] = []
        run_bench(lambda record, progress: failed.extend(train.measure(self, record, progress)), self.out, self.json)
        return told(failed)


@flat
@dataclass(frozen=True, kw_only=True)
class BenchDecode(DecodeBench):
    """Decoding tokens/s and memory after a short and a long prompt, HGRN2 beside transformers' Llama and Mamba.

    Greedy; all models and contexts take turns. llama-hf-static is Llama with a cache allocated for the whole text
    beforehand, hgrn2-graph is hgrn2 over fixed buffers, on a GPU as a CUDA graph.

    Example: hgrn2 bench decode --contexts 128 8192
    Example: hgrn2 bench decode --device cuda --preset 1.36b --models hgrn2-graph --contexts 2048 --batches 1 256
    """

    models: Annotated[tuple[Decoded, ...], tyro.conf.arg(aliases=["--subjects"])] = DecodeBench.models
    """Which models. hgrn2-graph replays its step as a CUDA graph (on a CPU: the same buffers, call by call)."""
    model_seconds: Annotated[float, tyro.conf.arg(aliases=["--subject-seconds"])] = DecodeBench.model_seconds
    """On a GPU: the time limit of one model, compiling and tuning included."""
    out: Folder = Path("results")
    """The folder whose decode.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        """Returns the exit code: 0, or 1 where a model failed on a GPU."""
        from hgrn2.bench import decode

        failed: list[str] = []
        rows = run_bench(
            lambda record, progress: failed.extend(decode.measure(self, record, progress)), self.out, self.json
        )
        longest, shortest = max(self.contexts), min(self.contexts)
        for row in rows if longest > shortest and not self.json else ():
            if row.case["context"] == longest:
                ratio = row.details["of_shortest_context"]
                print(f"{row.subject} after {longest:,} tokens: {ratio:.3f} of its speed after {shortest:,}")
        return told(failed)


@flat
@dataclass(frozen=True, kw_only=True)
class BenchOnnx(OnnxBench):
    """Decoding tokens/s of a saved model on the CPU: PyTorch's generate loop beside onnxruntime, the same weights.

    One sequence, greedy; all models take turns. Other programs on the machine spoil the numbers: PyTorch and
    onnxruntime both wait for their slowest thread.

    Example: hgrn2 bench onnx runs/demo --threads 1 2
    """

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    out: Folder = Path("results")
    """The folder whose onnx.jsonl gets the rows."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> None:
        from hgrn2.bench import onnx
        from hgrn2.generate.loading import load

        loaded = load(self.source, "cpu", warn=lambda message: print(f"warning: {message}", file=sys.stderr))
        run_bench(lambda record, progress: onnx.measure(loaded, self, record, progress), self.out, self.json)


@dataclass(frozen=True, kw_only=True)
class BenchTable:
    """Turn the rows of a results folder into tables, as Markdown, and those of a sweep into a figure beside it.

    Example: hgrn2 bench table --out docs/benchmarks.md
    """

    results: Folder = Path("results")
    """The folder with the rows, one .jsonl file per benchmark."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: print it)")] = None
    """The Markdown file to write; it is replaced."""

    def run(self) -> None:
        from hgrn2.bench.plot import draw_sweeps
        from hgrn2.bench.table import markdown
        from hgrn2.files import write_text
        from hgrn2.rows import read_folder

        rows = read_folder(self.results)
        if self.out is None:
            return print(markdown(rows), end="")
        figures = draw_sweeps(rows, self.out.parent)
        write_text(self.out, markdown(rows, figures))
        print(f"wrote {', '.join([str(self.out), *(str(self.out.parent / name) for name in figures)])}")


def _tune(bench: OpsBench, file: Path | None) -> int:
    """Measure launch settings and say what changed."""
    from hgrn2.bench.tune import tune
    from hgrn2.ops.gated_outer_scan.triton.launch_table import TABLE

    with progress_shown() as progress:
        choices = tune(bench, file or TABLE, progress)
    for choice in choices:
        print(choice)
    print(f"wrote {file or TABLE}")
    return 0


def told(failed: list[str]) -> int:
    """Name what failed; the exit code."""
    for line in failed:
        print(f"hgrn2: not measured: {line}", file=sys.stderr)
    return 1 if failed else 0


def run_bench(measure: "Callable[[Callable[[Row], None], Progress], None]", out: Path, as_json: bool) -> "list[Row]":
    """Measure, append every row to its file at once, and show them all at the end."""
    from hgrn2.rows import append, prepare_folder
    from hgrn2.settings import to_dict

    prepare_folder(out)
    rows: list[Row] = []

    def record(row: "Row") -> None:
        append(out, row)
        rows.append(row)

    with progress_shown() as progress:
        measure(record, progress)
    if as_json:
        console.print_json([to_dict(row) for row in rows])
    else:
        _show(rows)
        files = ", ".join(dict.fromkeys(f"{out / row.bench}.jsonl" for row in rows))
        print(f"{len(rows)} rows added" + (f" to {files}" if files else ""))
    return rows


def _show(rows: "list[Row]") -> None:
    from hgrn2.bench.profile_table import for_terminal as profiles
    from hgrn2.bench.table import for_terminal

    profiled = [row for row in rows if row.bench == "profile"]
    console.show(*profiles(profiled), *for_terminal(row for row in rows if row.bench != "profile"))
