"""Tables made from rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgrn2.bench.table import for_terminal, markdown, number, tables
from hgrn2.rows import Row, append, measurement


def rows() -> list[Row]:
    made = []
    for length in (64, 128):
        for subject, speed, parameters in (("llama-hf", 500.0, 1100), ("hgrn2", 1000.0, 1000)):
            case, details = {"width": 32, "tokens": length}, {"parameters": parameters, "state_bytes": length << 20}
            backend = "native" if subject == "hgrn2" else "torch"
            made.append(measurement("train", case, subject, backend, [speed + length], "tokens/s", details))
    return made


def test_constants_go_to_the_caption_and_the_rest_to_columns() -> None:
    (table,) = tables(rows())
    assert table.title == "Training steps"
    assert table.shared == "width 32, tokens/s: more is better"
    assert (table.cases, table.details) == (("tokens", "implementation"), ("parameters", "state"))
    assert table.speeds == ("tokens/s", "20–80 %", "repeats", "relative")
    assert table.lines[0] == ("64", "llama-hf", "564", "564 – 564", "1", "0.530", "1,100", "64.00 MiB")
    assert table.lines[1][1:6] == ("hgrn2, native", "1,064", "1,064 – 1,064", "1", "1.00")


def test_the_later_of_two_measurements_counts_and_machines_are_kept_apart() -> None:
    first, *others = rows()
    again = replace(first, value=1.0, median=1.0, low=1.0, high=1.0)
    elsewhere = replace(first, machine={**first.machine, "cpu": "another processor", "vectors": "AVX2"})
    here, there = tables([first, *others, again, elsewhere])
    assert [line[2] for line in here.lines] == ["1", "1,064", "628", "1,128"]
    assert "another processor with AVX2" in there.machine
    assert len(there.lines) == 1


def test_a_missing_detail_is_a_dash() -> None:
    one, two, *_ = rows()
    (table,) = tables([replace(one, details={}), two])
    assert table.lines[0][-2:] == ("–", "–")


def test_markdown_has_a_section_a_bench_in_a_fixed_order() -> None:
    made = rows()
    page = markdown([*made, replace(made[0], bench="ops", unit="ms")])
    assert page.index("## Operators") < page.index("## Training steps")
    assert "| 64 | llama-hf | 564 | 564 – 564 | 1 | 0.530 | 1,100 | 64.00 MiB |" in page
    assert page == markdown([*made, replace(made[0], bench="ops", unit="ms")])


def test_terminal_tables_split_speeds_and_details() -> None:
    speeds, details = for_terminal(rows())
    assert list(speeds.head) == [
        "tokens",
        "implementation",
        "tokens/s",
        "20–80 %",
        "repeats",
        "relative",
    ]
    assert list(details.head) == ["tokens", "implementation", "parameters", "state"]


def test_numbers() -> None:
    assert [number(x) for x in (12, 12345678, 12345.6, 0.0123456, 3.0)] == [
        "12",
        "12,345,678",
        "12,346",
        "0.01235",
        "3",
    ]


def test_the_page_through_the_command_line(bench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for row in rows():
        append(tmp_path / "results", row)
    done = bench("table", "--results", tmp_path / "results", "--out", tmp_path / "docs" / "benchmarks.md")
    assert done.code == 0
    page = (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page.startswith("# Benchmarks")
    assert "hgrn2 bench table --out docs/benchmarks.md" in page
    assert bench("table", "--results", tmp_path / "results").out == page
    assert bench("table", "--results", tmp_path / "nothing").code == 2
