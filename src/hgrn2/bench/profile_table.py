"""The rows of a profile for a terminal: one table for each task and model, its groups as lines."""

from collections.abc import Sequence
from typing import Any

from hgrn2 import console
from hgrn2.bench.groups import GAPS, WHOLE
from hgrn2.bench.table import name_of, number
from hgrn2.rows import Row

HEAD = ("group", "ms", "of all", "calls", "least ms", "of roofline", "longest, ms")


def for_terminal(rows: Sequence[Row]) -> list[console.Columns]:
    """One table per case."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        same = {name: value for name, value in row.case.items() if name != "group"}
        cases.setdefault(f"{same} {row.subject}", []).append(row)
    return [_drawn(group) for group in cases.values()]


def _drawn(rows: list[Row]) -> console.Columns:
    case, details = rows[0].case, rows[0].details
    if case["task"] == "train":
        title = f"A training step of {case['batch']} x {case['tokens']:,} tokens"
    else:
        title = f"A decoded token of {case['batch']} sequences"
    compiled = case["compile"]
    title += f", {name_of(rows[0])}, {case['dtype']}" + (f", compile {compiled}" if compiled else "")
    caption = (
        f"{GAPS}: {'no kernel runs' if rows[0].machine.get('gpu') else 'Python between operators'}; {WHOLE}: timed "
    )
    caption += "without the profiler"
    if profiled := rows[-1].details.get("profiled_ms"):
        caption += f", which took {number(profiled)} ms"
    caption += f"; peaks: {details['matmul_tflop_s']} TFLOP/s, {details['copy_gb_s']} GB/s"
    return console.Columns(HEAD, [_line(row) for row in rows], text=(0, 6), title=title, caption=caption)


def _line(row: Row) -> tuple[str, ...]:
    found = row.details

    def share(name: str) -> str:
        value: Any = found.get(name)
        return "" if value is None else f"{100 * value:.1f} %"

    floor = found.get("floor_ms")
    return (
        row.case["group"], number(row.median), share("of_profile"), f"{found['calls']:g}" if found.get("calls") else "",
        "" if floor is None else number(float(floor)), share("of_roofline"), found.get("longest", ""),
    )  # fmt: skip
