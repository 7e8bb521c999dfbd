"""One section per task of the page: accuracies beside the published ones, data, and a table of what was set
otherwise."""

import itertools
import re
import statistics
from collections.abc import Sequence

from hgrn2.reproduce.lines import Line
from hgrn2.rows import Row

SIZES = ("full", "fast", "small")


def section(task: str, lines: Sequence[Line]) -> list[str]:
    """The paragraphs of a task that has measured rows; `lines` are all of that task."""
    measured = [line for line in lines if line.rows]
    return [
        f"#### {measured[0].heading}",
        markdown(_results(lines)),
        " ".join(f"Data{_of(sizes)}: {data}." for data, sizes in _data(measured).items()),
        *_settings_table(measured),
    ]


def not_run(lines: Sequence[Line]) -> str:
    """One sentence with everything that has no row; empty where all has."""
    told = []
    for size in SIZES:
        missing: dict[tuple[str, ...], list[str]] = {}
        by_task = {task: tuple(line.name for line in lines if (line.size, line.task) == (size, task) and not line.rows)
                   for task in dict.fromkeys(line.task for line in lines)}  # fmt: skip
        for task, names in by_task.items():
            if names:
                missing.setdefault(names, []).append(task)
        told += [f"{', '.join(tasks)} in size {size} ({', '.join(names)})" for names, tasks in missing.items()]
    return f"Not run: {'; '.join(told)}." if told else ""


def markdown(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first row is its head; the first `words` columns stand to the left, the others to the right."""
    rule = ["---"] * words + ["---:"] * (len(rows[0]) - words)
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
                     for cells in (rows[0], rule, *rows[1:]))  # fmt: skip


def _results(lines: Sequence[Line]) -> list[list[str]]:
    """One row per model: published, and what each size of ours reached."""
    sizes = [size for size in SIZES if any(line.size == size and line.rows for line in lines)]
    by_name: dict[str, dict[str, Line]] = {}
    for line in lines:
        by_name.setdefault(line.name, {})[line.size] = line
    table = [["model", "published, %", *(f"ours, {size}, %" for size in sizes)]]
    for name, found in by_name.items():
        published = next((line.published for line in found.values() if line.published), None)
        ours = [found[size].ours_with_seeds if size in found else "–" for size in sizes]
        table.append([name, f"{published.per_cent:.2f}" if published else "–", *ours])
    return table


def _data(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Sizes by what they were trained on."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for row in line.rows:
            sizes = found.setdefault(str(row.details.get("data") or "–").rstrip("."), [])
            if line.size not in sizes:
                sizes.append(line.size)
    return found


def _of(sizes: Sequence[str]) -> str:
    return f" ({', '.join(sizes)})"


def _settings_table(lines: Sequence[Line]) -> list[str]:
    """Settings down, runs across; a cell is empty where a run was set as published."""
    columns: dict[tuple[tuple[str, str], ...], list[str]] = {}  # models that were set alike share a column
    published: dict[str, str] = {}
    for line in lines:
        newest = line.rows[-1]
        told = _changed(newest)
        published |= {name: theirs for name, (_, theirs) in told.items()}
        values = {name: ours for name, (ours, _) in told.items()} | _cost(line)
        columns.setdefault(tuple(values.items()), []).append(f"{line.name}, {line.size}")
    every = dict.fromkeys(name for values in columns for name, _ in values)
    names = [name for name in every if name not in _COST] + [name for name in _COST if name in every]
    head = ["setting", "published", *("; ".join(runs) for runs in columns.values())]
    rows = [[name, published.get(name, ""), *(dict(values).get(name, "") for values in columns)] for name in names]
    return ["Settings, where they are not the published ones:", markdown([head, *rows])]


BY_HAND = "set beside the recipe of that day"
_COST = ("budget, minutes", "minutes per run", "runs at once", "device", BY_HAND)


def _cost(line: Line) -> dict[str, str]:
    """How long the runs were and on what; minutes are a run's share where several shared a device."""
    newest = line.rows[-1]
    minutes = statistics.fmean(row.details["device_minutes"] for row in line.rows)
    budget = newest.details.get("by_the_clock_s")
    return {
        "budget, minutes": f"{budget / 60:.3g}" if budget else "–",
        "minutes per run": f"{minutes:.1f}",
        "runs at once": str(newest.details.get("at_once", 1)),
        "device": line.devices,
    } | ({BY_HAND: newest.details["changed"]} if newest.details.get("changed") else {})


def _changed(row: Row) -> dict[str, tuple[str, str]]:
    """Ours and the published value by setting, from a row's own words: `batch 64 (128), weight decay 0.05 (0.0)`."""
    found = {}
    for part in re.split(r",\s+", row.details.get("differs") or ""):
        told = re.fullmatch(r"(.+) \((.*)\)", part)
        if told is None:
            continue
        words = told[1].split(" ")
        # The value begins with the first word that has a digit, or else is the last word.
        name = list(itertools.takewhile(lambda word: not re.search(r"\d", word), words))
        name = name[:-1] if len(name) == len(words) else name
        found[" ".join(name)] = (" ".join(words[len(name) :]), told[2])
    return found
