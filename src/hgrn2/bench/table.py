"""Rows as tables: for the terminal, and as the Markdown of docs/benchmarks.md."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hgrn2 import console
from hgrn2.rows import Row

TITLES = {
    "peaks": "Measured peaks of the machine",
    "ops": "Operators",
    "sweep": "Cost of the operators against length",
    "train": "Training steps",
    "distributed": "Training on several processes",
    "decode": "Decoding, one token at a time",
    "onnx": "Decoding on a CPU: onnxruntime beside PyTorch",
    "float8": "Training in float8 beside bfloat16",
    "profile": "Where the time goes",
    "quantize": "Quantised weights",
    "serve": "Serving over HTTP",
    "eval": "Evaluation",
    "tune": "Tuned initial states beside LoRA",
    "qlora": "LoRA on quantised weights",
    "mqar": "Recall",
    "small_heads": "Two forms of small heads",
    "demo": "The demo, held-out text",
}
ELSEWHERE = ("reproduce",)
"""Rows that have a page of their own."""
BETTER = {"ms": "less is better", "s": "less is better", "tokens/s": "more is better"}
INTRODUCTION = """\
Made from the rows in `results/` by `hgrn2 bench table --out docs/benchmarks.md`; do not edit. `hgrn2 bench ops`,
`train` and `decode` add rows. Numbers are medians of the repeats, beside the range from the 20 % to the 80 % quantile.
What one command measures takes turns in one process; `relative` is a number divided by the first one of hgrn2 in its
case."""
NOTES = {
    "ops": """\
A result outside its tolerance of the float64 reference gets no row; `largest error` is the relative error of the result
that is furthest off. On a GPU, times are between events with the L2 cache overwritten before every call; `floor ms` is
the time of reading every input and writing every result once at the measured copy rate, `times floor` how many of them
a call takes, `gb s` those bytes per second; `extra` is memory at the peak beyond inputs, outputs and gradients; `host
ms` is how long the processor needs to start a call. `fla, core` is what its HGRN2 layer does from the three projections
to the norm, `fla, kernel` its `chunk_gla` alone. `first fwd+bwd` is the first call of all, kernels being built.""",
    "sweep": "As many tokens in all at every length.",
    "profile": """\
Milliseconds of one step by group: on a GPU of kernels, on a CPU of operators without those that they call. `gaps` is
the time in which no kernel runs, or, on a CPU, Python between operators; `of profile` the share of the profiled step.
`floor ms` is the least time of a group's operations and bytes at the peaks measured in the same run, `of roofline`
that divided by its time. The whole step is timed without the profiler.""",
}


@dataclass(frozen=True)
class Table:
    """Rows of one bench on one machine."""

    title: str
    machine: str
    shared: str
    """What all rows have in common."""
    cases: tuple[str, ...]
    """Names of the leading columns, with the implementation as the last of them."""
    speeds: tuple[str, ...]
    """Names of the columns of the measurement."""
    details: tuple[str, ...]
    """Names of what else is known."""
    lines: tuple[tuple[str, ...], ...]


def tables(rows: Iterable[Row]) -> list[Table]:
    """One table per bench and machine. Of the same measurement taken twice on one machine the later one counts."""
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in (row for row in rows if row.bench not in ELSEWHERE):
        identity = _identity(row.case, row.subject, row.backend, row.unit)
        groups.setdefault((row.bench, _machine(row.machine)), {})[identity] = row
    order = list(TITLES)
    known = sorted(groups, key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    return [_table(bench, machine, list(groups[bench, machine].values())) for bench, machine in known]


def by_machine(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows that count, of each machine by itself, in the order in which tables come."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        identity = _identity(row.bench, row.case, row.subject, row.backend, row.unit)
        groups.setdefault(_machine(row.machine), {})[identity] = row
    return [list(group.values()) for group in groups.values()]


def markdown(rows: Iterable[Row], sweeps: Sequence[str] = ()) -> str:
    """The page of all measurements; `sweeps` are image files beside it, one for each machine that has a sweep."""
    parts, figures, told = ["# Benchmarks", INTRODUCTION], iter(sweeps), set()
    for table in tables(rows):
        head = (*table.cases, *table.speeds, *table.details)
        rule = ["---" if name in table.cases else "---:" for name in head]
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *table.lines)]
        parts += [f"## {table.title}", f"{table.machine}.  \n{table.shared}."]
        if table.title not in told:
            parts += [NOTES[bench] for bench in NOTES if TITLES[bench] == table.title]
            told.add(table.title)
        if table.title == TITLES["sweep"]:
            parts += [f"![milliseconds against tokens]({figure})" for figure in itertools.islice(figures, 1)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def for_terminal(rows: Iterable[Row]) -> list[console.Columns]:
    """The same for a terminal, where details have a table of their own: lines of both would be too long for one."""
    made = []
    for table in tables(rows):
        speeds_end = len(table.cases) + len(table.speeds)
        caption = f"{table.shared}\n{table.machine}"
        made.append(_drawn(table, slice(len(table.cases), speeds_end), table.title, caption))
        if table.details:
            made.append(_drawn(table, slice(speeds_end, None), "", ""))
    return made


def _drawn(table: Table, columns: slice, title: str, caption: str) -> console.Columns:
    head = (*table.cases, *(*table.cases, *table.speeds, *table.details)[columns])
    rows = [(*line[: len(table.cases)], *line[columns]) for line in table.lines]
    return console.Columns(head, rows, text=(len(table.cases) - 1,), title=title, caption=caption)


def _table(bench: str, machine: str, rows: list[Row]) -> Table:
    same_case, cases = _split([row.case for row in rows])
    same_details, details = _split([_own(row.details) for row in rows])
    units = sorted({row.unit for row in rows})
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_identity(row.case, row.unit), []).append(row)
    shared = [f"{_spoken(name)} {_shown(name, value)}" for name, value in {**same_case, **same_details}.items()]
    shared += [f"{unit}: {BETTER[unit]}" for unit in units if unit in BETTER]
    lines = []
    for group in groups.values():
        base = next((row for row in group if row.subject == "hgrn2"), group[0])
        lines += [_line(row, base, cases, details, len(units) > 1) for row in group]
    return Table(
        title=TITLES.get(bench, bench),
        machine=f"{machine}; {_when(rows)}",
        shared=", ".join(shared),
        cases=(*map(_spoken, cases), "implementation"),
        speeds=(units[0] if len(units) == 1 else "median", "20–80 %", "repeats", "relative"),
        details=tuple(map(_spoken, details)),
        lines=tuple(lines),
    )


def _own(details: dict[str, Any]) -> dict[str, Any]:
    """Without what earlier versions cited of other people's runs: a table compares what one run measured."""
    return {name: value for name, value in details.items() if not name.startswith("recorded_")}


def name_of(row: Row) -> str:
    """The implementation, and its backend where there are several."""
    return row.subject if row.backend == "torch" else f"{row.subject}, {row.backend}"


def _line(row: Row, base: Row, cases: list[str], details: list[str], many_units: bool) -> tuple[str, ...]:
    return (
        *(_shown(name, row.case.get(name)) for name in cases),
        name_of(row),
        number(row.value) + (f" {row.unit}" if many_units else ""),
        f"{number(row.low)} – {number(row.high)}",
        str(row.repeats),
        f"{row.value / base.value:#.3g}" if base.value else "–",
        *(_shown(name, row.details.get(name)) for name in details),
    )


def _split(values: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What all of them share, and the names of the rest in the order of their first use."""
    names = list(dict.fromkeys(name for each in values for name in each))
    varying = [name for name in names if len({json.dumps(each.get(name)) for each in values}) > 1]
    return {name: values[0][name] for name in names if name not in varying}, varying


def _identity(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _machine(machine: dict[str, Any]) -> str:
    """What makes numbers comparable, as one phrase."""
    if machine.get("gpu"):
        return (
            f"{machine['gpu']}, driver {machine.get('driver')}, torch {machine.get('torch')}, "
            f"triton {machine.get('triton')}, {machine.get('platform')}"
        )
    device = machine.get("cpu") or "unknown processor"
    device += f" with {machine['vectors']}" if machine.get("vectors") else ""
    return (
        f"{device}, {machine.get('cores')} cores, {machine.get('threads')} threads, torch {machine.get('torch')}, "
        f"{machine.get('platform')}"
    )


def _when(rows: Sequence[Row]) -> str:
    """Days and commits of the rows."""
    days = sorted({row.date[:10] for row in rows})
    commits = sorted({_commit(row.machine) for row in rows})
    return f"{days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}, commit {', '.join(commits)}"


def _commit(machine: dict[str, Any]) -> str:
    name = str(machine.get("commit") or "unknown")[:9]
    return f"{name} with changes" if machine.get("dirty") else name


def _spoken(name: str) -> str:
    return name.replace("_bytes", "").replace("_", " ")


def _shown(name: str, value: Any) -> str:
    """A case or detail as text; `*_bytes` in MiB."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.2f} MiB"
    return number(value) if isinstance(value, (int, float)) else str(value).replace("|", "/")


def number(value: float) -> str:
    """Four significant digits, thousands separated; whole numbers in full."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
