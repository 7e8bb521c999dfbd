"""Loss curves of every arm at its best rate, and final loss against the learning rate, as one PNG."""

from pathlib import Path
from typing import TYPE_CHECKING

from hgrn2.report import plotting
from hgrn2.study.results import Entry, Group
from hgrn2.units import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "hgrn2": "#0072b2", "hgrn1": "#009e73", "llama": "#24292e", "gla": "#d55e00", "mamba": "#cc79a7",
    "mamba2": "#e69f00", "mingru": "#56b4e9", "rglru": "#8c564b", "lru": "#7f3fbf", "outer": "#0072b2",
}  # fmt: skip
"""By architecture; its other forms are dashed or dotted."""
OTHERS = ("#56b4e9", "#6a737c", "#f0e442", "#8c564b", "#17becf", "#7f3fbf", "#aab81c", "#e377c2")
SIZE = (10.4, 4.4)
LEGEND = 5
"""Columns of the legend at most."""
BEHIND = 0.15
"""Of a curve's tokens, left out at the start: there it falls so steeply that nothing else would be seen."""


def draw(group: Group, folder: Path, name: str) -> Path | None:
    """Write `folder`/`name`.png; None where matplotlib is missing."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with mpl.rc_context(plotting.style()):
        figure = Figure(figsize=SIZE, layout="constrained")
        left, right = figure.subplots(1, 2)
        styles = _styles(group)
        if group.common["study"] == "length":
            _positions(left, group, styles)
        else:
            _curves(left, group, styles)
        _rates(right, group, styles)
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(LEGEND, len(handles)))
        figure.suptitle(title(group), fontsize=9.5)
        plotting.save(figure, folder, name)
    return folder / f"{name}.png"


def title(group: Group) -> str:
    """What was compared on what."""
    parameters = [row.details["parameters"] for one in group.entries for row in one.rows]
    least, most = short(min(parameters)), short(max(parameters))
    sizes = least if least == most else f"{least} to {most}"
    return (
        f"{sizes} parameters, {short(group.tokens)} tokens of {group.data}, sequences of {group.common['sequence']:,}"
    )


def _styles(group: Group) -> dict[str, tuple[str, str]]:
    """Colour and line of each arm."""
    found, others, used = {}, iter(OTHERS * 4), dict[str, int]()
    for one in sorted(group.entries, key=lambda entry: (len(entry.subject), entry.name)):
        base = one.subject.partition("-")[0]
        colour = COLOURS.get(base)
        if colour is None or group.common["study"] in ("expansion", "ablation"):
            found[one.name] = (COLOURS["hgrn2"] if one.subject == "hgrn2" else next(others), "-")
            continue
        found[one.name] = (colour, ("-", "--", ":", "-.")[used.get(base, 0) % 4])
        used[base] = used.get(base, 0) + 1
    return found


def _curves(axes: "Axes", group: Group, styles: dict[str, tuple[str, str]]) -> None:
    for one in group.entries:
        colour, line = styles[one.name]
        points = [point for point in one.best[0].details.get("curve", []) if point[0] >= BEHIND * group.tokens]
        axes.plot([p[0] for p in points], [p[1] for p in points], line, color=colour, linewidth=1.5)
    axes.set_ylabel("training loss, nats/token")
    axes.set_title("at the best rate tried")
    plotting.token_axis(axes)
    axes.set_xlim(BEHIND * group.tokens, group.tokens * 1.02)
    plotting.log_axis(axes)


def _positions(axes: "Axes", group: Group, styles: dict[str, tuple[str, str]]) -> None:
    for one in group.entries:
        colour, line = styles[one.name]
        buckets = one.best[0].details.get("by_position", [])
        axes.plot([b[0] for b in buckets], [b[2] for b in buckets], line, color=colour, marker="o", markersize=3,
                  linewidth=1.5)  # fmt: skip
    axes.axvline(group.common["sequence"], color=plotting.FAINT, linewidth=0.9, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the text; trained up to the dotted line")
    axes.set_ylabel("held-out loss, nats/token")
    axes.set_title("at the best rate tried")
    plotting.log_axis(axes)


def _rates(axes: "Axes", group: Group, styles: dict[str, tuple[str, str]]) -> None:
    swept = {one.name: one for one in group.sweep}
    for one in group.entries:
        colour, line = styles[one.name]
        entry = swept.get(one.name, one)
        points = _finite(entry)
        axes.plot(list(points), list(points.values()), line, color=colour, marker="o", markersize=4, linewidth=1.5,
                  label=one.name)  # fmt: skip
    rates = sorted({lr for one in group.entries for lr in swept.get(one.name, one).by_rate})
    axes.set_xscale("log", base=2)
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=30)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("held-out loss, nats/token")
    tokens = {one.tokens for one in swept.values()}
    axes.set_title("after the sweep" + (f" ({short(min(tokens))} tokens)" if len(tokens) == 1 else ""))
    plotting.log_axis(axes)


def _finite(entry: Entry) -> dict[float, float]:
    """Loss by rate, runs that diverged left out: their place would press all others together."""
    diverged = {row.case["lr"] for row in entry.rows if row.details.get("diverged")}
    return {lr: loss for lr, loss in entry.by_rate.items() if lr not in diverged}
