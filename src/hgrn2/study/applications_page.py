"""The tables of docs/applications.md, and what follows from them: Markdown between two marks, made from rows alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrn2.files import read_text, write_text
from hgrn2.report import plotting
from hgrn2.rows import Row
from hgrn2.settings import refuse
from hgrn2.study.applications import arms_of
from hgrn2.study.arms import OURS
from hgrn2.study.page import machines_of
from hgrn2.study.plot import COLOURS, title
from hgrn2.study.protocol import GENERATED, Study, StudyName
from hgrn2.study.results import Entry, Group, groups
from hgrn2.units import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN = "<!-- made by `hgrn2 study table` from results/study.jsonl; do not edit -->"
END = "<!-- end of what `hgrn2 study table` makes -->"
TITLES: dict[StudyName, str] = {"stream": "A stream that never ends", "monitor": "Watching machines"}
NAMES = {
    "hgrn2": "HGRN2", "hgrn1": "HGRN1", "window": "attention, window", "mamba2": "Mamba-2", "llama": "LLaMA, every key",
    "hgrn2-windows": "HGRN2, trained on windows",
}  # fmt: skip
WEAK = 0.75
"""An AUROC below it is told as one that says little."""


def block(rows: Sequence[Row], folder: Path | None = None) -> str:
    """All tables as Markdown, with the marks around them; plots go to `folder`, where one is given."""
    parts = [BEGIN]
    for study, heading in TITLES.items():
        found = [group for group in groups(rows, study) if _measured(group, study)]
        parts.append(f"## {heading}")
        if not found:
            parts.append(f"Not run: `hgrn2 study {study}` makes it.")
        for number, group in enumerate(found):
            name = f"applications-{study}" + (f"-{number + 1}" if number else "")
            parts += _section(group, study, folder, name)
    return "\n\n".join([*parts, END])


def update(page: Path, rows: Sequence[Row]) -> bool:
    """Put tables and plots in their place on a page; returns whether that changed it.

    Raises:
        UserError: no marks in it.
    """
    text = read_text(page)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    refuse(not begin or not end, f"{page} has no place for the tables: lines with {BEGIN} and {END}")
    made = before + block(rows, page.parent) + after
    if made != text:
        write_text(page, made)
    return made != text


def _measured(group: Group, study: str) -> list[Entry]:
    """Arms that were read after training: those of the final number of tokens."""
    return [one for one in group.entries if study in one.best[0].details]


def _section(group: Group, study: StudyName, folder: Path | None, name: str) -> list[str]:
    row, common = group.entries[0].best[0], group.common
    told = (
        f"Trained on sequences of {common['sequence']:,}, {common['batch'] * common['sequence']:,} tokens per step, "
        f"{common['warmup']:,} steps of warm-up, cosine to a tenth, weight decay 0.1, clipping at 1, AdamW, "
        f"{common['precision']}; {_swept(group)}. {machines_of(group)}."
    )
    entries = _measured(group, study)
    table, findings = (_stream_table, _stream_findings) if study == "stream" else (_monitor_table, _monitor_findings)
    image = _draw(group, study, folder, name) if folder is not None else None
    alt = "loss by position and by part" if study == "stream" else "faults found and forecasts against idle entries"
    limits = [f"anything about other sizes or longer training: these are {short(row.details['parameters'])} parameters"]
    if all(len(one.best) == 1 for one in entries):
        limits.append("that a small difference is one: there is one seed of each model")
    if alone := [NAMES[one.subject] for one in entries if len(group.rates(one)) < 2]:
        limits.append(f"what other rates would do: one alone was tried of {', '.join(alone)}")
    study_ = Study(study=study, size=common["size"], source=GENERATED if study == "monitor" else "shakespeare")
    if lacking := [NAMES[name] for name in arms_of(study_) if name not in {one.subject for one in entries}]:
        limits.append(f"anything about {', '.join(lacking)}: not run here")
    if edges := [NAMES[one.subject] for one in group.open_sweeps]:
        limits.append(f"the best rate of {', '.join(edges)}: it stands at an edge of those tried")
    limits.append("speed: models were not timed beside each other")
    return [
        f"### {title(group)}", told, table(entries, group),
        *([f"![{alt}]({image.name})"] if image else []),
        "What follows:", "\n".join(f"- {line}" for line in findings(entries, group)),
        "What does not:", "\n".join(f"- {line}" for line in limits),
    ]  # fmt: skip


def _found(one: Entry, study: str) -> dict[str, Any]:
    """What was measured with the first seed."""
    return one.best[0].details[study]


def _swept(group: Group) -> str:
    tokens = ", ".join(sorted({short(one.tokens) for one in group.sweep}))
    return f"rates swept for each model on {tokens} tokens" if tokens else "one rate for all models, none swept"


def _rates(one: Entry, group: Group) -> str:
    rates = group.rates(one)
    return f"{one.lr:g} of {min(rates):g} to {max(rates):g}" if len(rates) > 1 else f"{one.lr:g} alone"


def _lines(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def _stream_table(entries: list[Entry], group: Group) -> str:
    rows = []
    for one in sorted(entries, key=lambda entry: entry.best[0].details["stream"]["nats"]):
        details, found = one.best[0].details, one.best[0].details["stream"]
        parts = found["parts"]
        memory = "–" if parts[0][3] is None else f"{parts[0][3]:,.0f}, {parts[-1][3]:,.0f}"
        rows.append([
            NAMES[one.subject], f"{found['nats']:.4f}", f"{found['nats'] / math.log(2):.4f}", f"{parts[-1][1]:.4f}",
            f"{one.best[0].value:.4f}", f"{parts[0][2] / 1e3:,.1f}, {parts[-1][2] / 1e3:,.1f}", memory,
            _rates(one, group), short(details["parameters"]),
        ])  # fmt: skip
    tokens = entries[0].best[0].details["stream"]["tokens"]
    head = ["model", f"stream of {tokens:,}, nats/token", "bits/token", "its last sixteenth",
            f"windows of {group.common['sequence']:,}", "state, kB, after 1/16 and at the end",
            "memory, MB, likewise", "rate", "parameters"]  # fmt: skip
    return _lines(head, rows)


def _stream_findings(entries: list[Entry], group: Group) -> list[str]:
    by = {one.subject: one.best[0].details["stream"] for one in entries}
    value = {one.subject: one.best[0].value for one in entries}
    found = []
    if ours := by.get(OURS):
        for name, other in by.items():
            if name != OURS:
                less = other["nats"] - ours["nats"]
                how = "lower" if less > 0 else "higher"
                found.append(f"as a stream, {NAMES[OURS]} is {abs(less):.4f} nats/token {how} than {NAMES[name]}")
    flat = [NAMES[name] for name, one in by.items() if one["parts"][0][2] == one["parts"][-1][2]]
    found.append(f"the state has as many bytes after 1/16 of the stream as at its end: {', '.join(flat) or 'no model'}")
    grown = {NAMES[name]: one["parts"][-1][3] - one["parts"][0][3] for name, one in by.items()
             if one["parts"][0][3] is not None}  # fmt: skip
    if grown:
        told = ", ".join(f"{name} {more:+.1f} MB" for name, more in grown.items())
        found.append(f"memory between those two places: {told}")
    told = ", ".join(f"{NAMES[name]} {value[name] - one['nats']:+.4f}" for name, one in by.items())
    found.append(f"windows minus stream, on texts that overlap but are not the same: {told}")
    return found


def _monitor_table(entries: list[Entry], group: Group) -> str:
    order = sorted(entries, key=lambda one: (-sum(gap[1] for gap in _found(one, "monitor")["gaps"]), one.name))
    gaps = [gap[0] for gap in _found(entries[0], "monitor")["gaps"]]
    rows = []
    for one in order:
        found = _found(one, "monitor")
        rows.append([
            NAMES[one.subject], *(f"{gap[1]:.3f}" for gap in found["gaps"]),
            *(f"{gap[2] - found['lower_bound']:.2f}" for gap in found["gaps"]),
            f"{found['gaps'][0][4] / 1e3:,.1f}, {found['gaps'][-1][4] / 1e3:,.1f}", _rates(one, group),
            short(one.best[0].details["parameters"]),
        ])  # fmt: skip
    head = ["model", *(f"AUROC, {gap:,} idle" for gap in gaps), *(f"nats above bound, {gap:,}" for gap in gaps),
            "state of a machine, kB, shortest and longest log", "rate", "parameters"]  # fmt: skip
    return _lines(head, rows)


def _monitor_findings(entries: list[Entry], group: Group) -> list[str]:
    length, lines = group.common["sequence"], []
    for one in entries:
        gaps: list[list[Any]] = one.best[0].details["monitor"]["gaps"]
        reach = [gap for gap in gaps if gap[1] >= WEAK]
        last = gaps[-1]
        told = f"finds faults up to {reach[-1][0]:,} idle entries" if reach else "finds faults at no distance"
        lines.append(f"{NAMES[one.subject]} {told} (AUROC of at least {WEAK:g}); {last[1]:.3f} at {last[0]:,}")
    jobs = entries[0].best[0].details["monitor"]["gaps"][0][3]
    lines.append(
        f"guessing is an AUROC of 0.5 and {math.log(8):.2f} nats above the lower bound; {jobs} jobs at each distance, "
        "so that an AUROC near 0.5 is uncertain by about 0.07; "
        f"trained on at most {2 * length:,} idle entries"
    )
    return lines


def _draw(group: Group, study: str, folder: Path, name: str) -> Path | None:
    """Write `folder`/`name`.png; None where matplotlib is missing."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with mpl.rc_context(plotting.style()):
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for one in _measured(group, study):
            colour = COLOURS.get({"window": "llama"}.get(one.subject, one.subject.partition("-")[0]), "#6a737c")
            look = {"color": colour, "linestyle": "--" if one.subject in ("window", "hgrn2-windows") else "-",
                    "linewidth": 1.5, "marker": "o", "markersize": 3, "label": NAMES[one.subject]}  # fmt: skip
            (_stream_lines if study == "stream" else _monitor_lines)(left, right, one.best[0].details[study], look)
        _axes(left, right, study, group.common["sequence"])
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        figure.suptitle(title(group), fontsize=9.5)
        plotting.save(figure, folder, name)
    return folder / f"{name}.png"


def _stream_lines(left: "Axes", right: "Axes", found: dict[str, Any], look: dict[str, Any]) -> None:
    far = [bucket for bucket in found["by_position"] if bucket[0] >= 32]  # few tokens before that, and noise
    left.plot([bucket[0] for bucket in far], [bucket[2] for bucket in far], **look)
    right.plot([part[0] for part in found["parts"]], [part[1] for part in found["parts"]], **look)


def _monitor_lines(left: "Axes", right: "Axes", found: dict[str, Any], look: dict[str, Any]) -> None:
    gaps = [gap[0] for gap in found["gaps"]]
    left.plot(gaps, [gap[1] for gap in found["gaps"]], **look)
    right.plot(gaps, [gap[2] - found["lower_bound"] for gap in found["gaps"]], **look)


def _axes(left: "Axes", right: "Axes", study: str, length: int) -> None:
    left.set_xscale("log", base=2)
    left.axvline(length, color=plotting.FAINT, linewidth=0.9, linestyle=":")
    if study == "stream":
        left.set_xlabel("tokens read before (a point for each doubling); dotted: training length")
        left.set_ylabel("nats/token")
        right.set_xlabel("tokens read")
        right.set_ylabel("nats/token of each sixteenth")
        plotting.token_axis(right)
        return
    for axes in (left, right):
        axes.set_xlabel("idle entries between recipe and run; dotted: training length")
    right.set_xscale("log", base=2)
    right.axvline(length, color=plotting.FAINT, linewidth=0.9, linestyle=":")
    left.axhline(0.5, color=plotting.FAINT, linewidth=0.9, linestyle=":")
    right.axhline(math.log(8), color=plotting.FAINT, linewidth=0.9, linestyle=":")
    left.set_ylabel("AUROC of surprise for faults")
    right.set_ylabel("first reading: nats above the lower bound")
