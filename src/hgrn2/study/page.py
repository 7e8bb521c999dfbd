"""The tables of the page, and what follows from them: Markdown between two marks, made from rows alone."""

from collections.abc import Sequence
from pathlib import Path

from hgrn2.files import read_text, write_text
from hgrn2.rows import Row
from hgrn2.settings import refuse
from hgrn2.study.plot import draw, title
from hgrn2.study.results import Group, groups
from hgrn2.study.words import findings, limits, verdict
from hgrn2.units import short

BEGIN = "<!-- made by `hgrn2 study table` from results/study.jsonl; do not edit -->"
END = "<!-- end of what `hgrn2 study table` makes -->"
TITLES = {
    "compare": "Architectures", "expansion": "State expansion n at equal parameters",
    "ablation": "One thing at a time", "others": "State expansion for other linear RNNs",
    "structured": "Ways to expand at equal state size", "length": "Texts of up to 16 times the training length",
}  # fmt: skip


def block(rows: Sequence[Row], folder: Path | None = None) -> str:
    """All tables as Markdown, with the marks around them; plots go to `folder`, where one is given."""
    parts = [BEGIN, verdict(groups(rows, "compare"))]
    for study, heading in TITLES.items():
        found = groups(rows, study)
        if not found:
            parts += [f"## {heading}", f"Not run: `hgrn2 study {study}` makes it."]
            continue
        parts.append(f"## {heading}")
        for number, group in enumerate(found):
            parts += section(group, folder, f"study-{study}" + (f"-{number + 1}" if number else ""))
            parts += [findings(group), *([limits(group)] if number == 0 else [])]
    return "\n\n".join([*parts, END])


def section(group: Group, folder: Path | None, name: str) -> list[str]:
    """The paragraphs of one group: what was trained, the table, the plot."""
    row, common = group.entries[0].best[0], group.common
    packed = "states start anew at documents" if common["documents"] == "reset" else "documents packed without a mark"
    changes = ", ".join(["", *common["set"]])
    told = (
        f"{common['batch'] * common['sequence']:,} tokens per step, {common['warmup']:,} steps of "
        f"warm-up, cosine to a tenth, weight decay 0.1, clipping at 1, {common['precision']}; {packed}{changes}. "
        f"Held out: {row.details['held_out_tokens']:,} tokens in windows of the training length. {machines_of(group)}."
    )
    image = draw(group, folder, name) if folder is not None and _worth_drawing(group) else None
    return [
        f"### {title(group)}",
        told,
        markdown(group),
        *([f"![loss curves, and loss against the learning rate]({image.name})"] if image else []),
    ]


def markdown(group: Group) -> str:
    """A line an arm, the lowest loss first."""
    head = ["model", "held-out loss", "seeds", "rate", "rates tried", "parameters", "state, kB", "tokens/s"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    swept = {one.name: one for one in group.sweep}
    for one in group.entries:
        details, rates = one.best[0].details, swept.get(one.name, one).by_rate
        alone = details.get("at_once", 1) == 1  # else the speed is that of a part of a GPU
        speed = f"{details['tokens_per_s']:,}" if alone and details.get("tokens_per_s") else "–"
        edge = " (edge)" if one.name in {entry.name for entry in group.open_sweeps} else ""
        tried = f"{min(rates):g} to {max(rates):g}" if len(rates) > 1 else f"{min(rates):g} alone"
        cells = [one.name, one.shown, str(len(one.best)), f"{one.lr:g}{edge}", tried, short(details["parameters"]),
                 f"{details['state_bytes'] / 1e3:,.0f}", speed]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update(page: Path, rows: Sequence[Row]) -> bool:
    """Put tables and plots in their place on a page; returns whether that changed it.

    Raises:
        UserError: no such file, or no marks in it.
    """
    refuse(not page.exists(), f"{page} does not exist; --page names the file that the tables go into")
    text = read_text(page)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    refuse(not begin or not end, f"{page} has no place for the tables: lines with {BEGIN} and {END}")
    made = before + block(rows, page.parent) + after
    if made != text:
        write_text(page, made)
    return made != text


def _worth_drawing(group: Group) -> bool:
    return len(group.entries) > 1 or any(len(one.by_rate) > 1 for one in group.entries)


def machines_of(group: Group) -> str:
    """What the runs of a group were made on."""
    found = []
    for one in group.entries:
        for row in one.rows:
            machine = row.machine
            gpu = row.details.get("device") == "cuda"
            found.append(machine.get("gpu") if gpu else f"{machine.get('cpu') or 'a CPU'}")
    return ", ".join(str(name) for name in dict.fromkeys(found))
