"""The tables of the page: Markdown between two marks, made from the rows of `results/reproduce.jsonl` alone."""

from collections.abc import Sequence
from pathlib import Path

from hgrn2.files import read_text, write_text
from hgrn2.reproduce.lines import TITLES, Line, lines_of
from hgrn2.reproduce.published import CLAIM
from hgrn2.reproduce.sections import not_run, section
from hgrn2.rows import Row
from hgrn2.settings import refuse

BEGIN = "<!-- made by `hgrn2 reproduce table` from results/reproduce.jsonl; do not edit -->"
END = "<!-- end of what `hgrn2 reproduce table` makes -->"


def block(rows: Sequence[Row]) -> str:
    """All tables as Markdown, with the marks around them."""
    parts = [BEGIN]
    for table, title in TITLES.items():
        lines = lines_of(rows, table)
        parts.append(f"### {title}")
        if table == "mqar":
            parts.append(f"Published: {CLAIM}.")
        sources = dict.fromkeys(line.published.source for line in lines if line.published)
        if sources:
            parts.append(f"Published: {'; '.join(sources)}.")
        by_task: dict[str, list[Line]] = {}
        for line in lines:
            by_task.setdefault(line.task, []).append(line)
        for task, found in by_task.items():
            if any(line.rows for line in found):
                parts += section(task, found)
        parts += filter(None, [not_run(lines)])
    return "\n\n".join([*parts, END])


def update(page: Path, rows: Sequence[Row]) -> bool:
    """Put the tables between the marks of a page; returns whether that changed it.

    Raises:
        UserError: no such file, or no marks in it.
    """
    refuse(not page.exists(), f"{page} does not exist; --page names the file that the tables go into")
    text = read_text(page)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    refuse(not begin or not end, f"{page} has no place for the tables: lines with {BEGIN} and {END}")
    made = before + block(rows) + after
    if made != text:
        write_text(page, made)
    return made != text
