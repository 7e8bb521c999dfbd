"""What the rows of a comparison say in words: who has the lowest loss, by how much, and what that does not show."""

from collections.abc import Sequence

from hgrn2.models.comparison import COMPARED, comparison_config
from hgrn2.study.arms import OURS
from hgrn2.study.plot import title
from hgrn2.study.protocol import Study, bracketed, next_rates
from hgrn2.study.results import Entry, Group
from hgrn2.units import short

NAMES = {
    "hgrn2": "HGRN2", "hgrn1": "HGRN1", "llama": "LLaMA", "gla": "GLA", "mamba": "Mamba", "mamba2": "Mamba-2",
    "mingru": "minGRU", "rglru": "RG-LRU", "lru": "LRU",
}  # fmt: skip


def verdict(found: Sequence[Group]) -> str:
    """The first line of the page: whether HGRN2 has the lowest loss of the published forms, by how much, and with what
    spread, where the largest model was trained on the most tokens."""
    group = next((one for one in found if one.find(OURS) and len(one.published()) > 1), None)
    if group is None:
        return "**Not known yet**: no rows of HGRN2 beside another architecture."
    ours = group.find(OURS)
    assert ours is not None
    best, second = group.published()[:2]
    other = second if best is ours else best
    if group.unfinished:
        return f"**Not decided yet** {_where(group)}: {_so_far(group)}. {missing(group)}"
    clear = group.clear(ours, other)
    return f"{_won(best is ours, clear)} {_where(group)}: {_beside(ours, other)}; {_spread(group)}. {_all(group)}"


def _so_far(group: Group) -> str:
    """Every published form with its best rate, and whether that is one."""
    told = []
    for one in group.published():
        rates = group.rates(one)
        how = "between two others" if bracketed(rates) else "at an edge" if len(rates) > 1 else "the only one tried"
        told.append(f"{name_of(one)} {one.loss:.4f} at a rate of {one.lr:g} ({how})")
    return ", ".join(told) + ("" if group.spread is not None else "; one seed each")


def missing(group: Group) -> str:
    """Which published forms and rates still have no run; empty where nothing is missing."""
    found = {one.subject: one for one in group.published()}
    rates = [
        f"{name_of(one)} {', '.join(f'{lr:g}' for lr in next_rates(group.rates(one), Study().lrs))}"
        for one in group.unfinished
    ]
    size = group.common["size"]
    others = [NAMES.get(name, name) for name in COMPARED
              if name not in found and not comparison_config(name, size).pattern]  # fmt: skip
    told = [f"rates of {'; of '.join(rates)}"] if rates else []
    told += [f"every run of {', '.join(others)}"] if others else []
    return f"Missing: {'; '.join(told)}." if told else ""


def findings(group: Group) -> str:
    """What follows from a group's table."""
    return "\n".join(["What follows:", "", *(f"- {line}" for line in _findings(group))])


def limits(group: Group) -> str:
    """What does not follow from it."""
    return "\n".join(["What does not:", "", *(f"- {line}" for line in _limits(group))])


def _won(first: bool, clear: bool | None) -> str:
    if clear is False:
        return "**HGRN2 is level with the best of the others**"
    if clear is None:
        return "**HGRN2 has the lowest loss**" if first else "**HGRN2 does not have the lowest loss**"
    return "**HGRN2 wins**" if first else "**HGRN2 does not win**"


def _where(group: Group) -> str:
    parameters = max(one.best[0].details["parameters"] for one in group.published())
    best = "" if group.unfinished else " and at its own best learning rate"
    return (
        f"at {short(parameters)} parameters and {short(group.tokens)} tokens of {group.data}, every architecture as "
        f"published{best}, by AdamW"
    )


def _beside(ours: Entry, other: Entry) -> str:
    by = other.loss - ours.loss
    return (
        f"{ours.shown} nats/token on held-out text beside {other.shown} of {name_of(other)}, "
        f"{abs(by):.4f} {'lower' if by > 0 else 'higher'}"
    )


def _spread(group: Group) -> str:
    if group.spread is None:
        return "one seed each, so that how much of it is chance is not known"
    seeds = sorted({len(one.best) for one in group.entries})
    number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"seeds of one arm differ by {group.spread:.4f} (standard deviation, {number} each)"


def _all(group: Group) -> str:
    told = ", ".join(f"{name_of(one)} {one.loss:.4f}" for one in group.published())
    return f"In order: {told}."


def name_of(entry: Entry) -> str:
    """A subject for a sentence."""
    base, dash, rest = entry.subject.partition("-")
    return NAMES.get(base, base) + dash + rest


def _findings(group: Group) -> list[str]:
    study = group.common["study"]
    if study == "compare":
        return _order(group) + _at_one_rate(group) + _pairs(group)
    if study == "length":
        return _beyond(group) + _carried(group)
    best, worst = group.entries[0], group.entries[-1]
    found = [f"lowest: {best.name}, {best.shown}; highest: {worst.name}, {worst.shown}"]
    if study == "others":
        return found + _pairs(group)
    base = group.find("outer" if study == "structured" else OURS)
    if base is not None:
        beside = " beside outer" if study == "structured" else ""
        found += [f"{one.name}{beside}: {_difference(group, one, base)}" for one in group.entries if one is not base]
    return found


def _order(group: Group) -> list[str]:
    """HGRN2 beside every other published form, where both have their best rate."""
    ours = group.find(OURS)
    if ours is None or ours in group.unfinished:
        return []
    return [
        f"HGRN2 beside {name_of(one)}: {_difference(group, ours, one)}"
        for one in group.published()
        if one is not ours and one not in group.unfinished
    ]


def _at_one_rate(group: Group) -> list[str]:
    """Published forms at each rate that all of them had, while some are not swept to the end."""
    swept = {name_of(one): group.rates(one) for one in group.published()}
    if not group.unfinished or len(swept) < 2:
        return []
    shared = sorted(set.intersection(*(set(rates) for rates in swept.values())))
    told = {lr: ", ".join(f"{name} {rates[lr]:.4f}" for name, rates in swept.items()) for lr in shared}
    return [f"at the same rate of {lr:g}, which need not be the best of any: {text}" for lr, text in told.items()]


def _pairs(group: Group) -> list[str]:
    """A changed form beside the published one, and Muon beside AdamW."""
    found = []
    for one in group.entries:
        base = one.subject.partition("-")[0]
        if one.optimizer == "adamw" and one.changes and (published := group.find(base)):
            found.append(f"{one.name} beside {published.name}: {_difference(group, one, published)}")
        if one.optimizer == "muon" and (adamw := group.find(one.subject)):
            found.append(f"{one.subject}, Muon beside AdamW: {_difference(group, one, adamw)}")
    return found


def _beyond(group: Group) -> list[str]:
    """Loss at the training length and in the last positions that were read."""
    length, found = group.common["sequence"], []
    for one in group.entries:
        buckets = one.best[0].details.get("by_position", [])
        inside = next((bucket for bucket in reversed(buckets) if bucket[1] <= length), None)
        if inside is not None:
            last = buckets[-1]
            change = last[2] - inside[2]
            found.append(
                f"{one.name}: {inside[2]:.3f} at positions {inside[0]:,.0f} to {inside[1]:,.0f}, {last[2]:.3f} at "
                f"{last[0]:,.0f} to {last[1]:,.0f}, {abs(change):.3f} {'higher' if change > 0 else 'lower'}"
            )
    return found


def _carried(group: Group) -> list[str]:
    """Training with carried states beside training on windows: first and last positions, and beyond training."""
    found, length = [], group.common["sequence"]
    for one in group.entries:
        base = group.find(one.subject.removesuffix("-carry"), one.optimizer)
        if base is None or base is one:
            continue
        pairs = zip(*(entry.best[0].details.get("by_position", []) for entry in (one, base)), strict=False)
        changes = [(first, mine - theirs) for (first, _, mine), (_, _, theirs) in pairs]
        if not changes:
            continue
        beyond = [change for first, change in changes if first >= length]
        told = ", ".join(f"{change:+.3f}" for change in beyond) or "none"
        found.append(
            f"{one.name} beside {base.name}, nats/token: {changes[0][1]:+.3f} at the first position, {told} in the "
            f"doublings from position {length:,} on"
        )
    return found


def _difference(group: Group, one: Entry, other: Entry) -> str:
    by, clear = one.loss - other.loss, group.clear(one, other)
    told = f"{abs(by):.4f} {'higher' if by > 0 else 'lower'}"
    return told + {True: "", False: ", within what seeds differ by", None: " (one seed)"}[clear]


def _limits(group: Group) -> list[str]:
    row = group.entries[0].best[0]
    per = group.tokens / row.details["parameters"]
    found = [
        f"anything about other sizes or longer training: these are {title(group)}, {per:.2g} tokens per parameter; the "
        "paper's claim is about 1 to 3 B parameters and 100 B tokens",
        "speed: arms were not timed beside each other, and their kernels are not equally good",
        "recall and long texts, which this loss hardly asks for ([recall](mqar.md))",
    ]
    if group.common["study"] == "compare" and group.unfinished:
        names = ", ".join(name_of(one) for one in group.unfinished)
        found.insert(0, f"an order: {names} may be better at rates that were not tried. {missing(group)}")
    if group.common["study"] == "others":
        found.append("an order of the cells as published: here all have one shell, and none a short convolution")
    if group.common["study"] == "structured":
        widths = [one.best[0].details["glu_width"] for one in group.entries]
        found.append(
            f"what a map does by itself: its weights are taken from the GLU, which is {min(widths):,} to "
            f"{max(widths):,} wide; and the maps are our reconstruction of those that the paper names"
        )
    alone = [one.name for one in group.entries if len(group.rates(one)) == 1]
    if alone and group.common["study"] != "compare":
        named = "any arm" if len(alone) == len(group.entries) else ", ".join(alone)
        found.insert(0, f"how good {named} can be: a single rate was tried")
    if group.spread is None:
        found.insert(0, "that a small difference is one: there is one seed of each arm")
    if group.open_sweeps and not (group.common["study"] == "compare" and group.unfinished):
        names = ", ".join(one.name for one in group.open_sweeps)
        found.insert(
            0, f"the best rate of {names}: it stands at an edge of those tried, and a better one may lie beyond"
        )
    if any(one.tokens != group.tokens for one in group.sweep):
        swept = short(min(one.tokens for one in group.sweep))
        found.append(f"that the rates are best for this many tokens: they were swept on {swept}")
    if row.details.get("epochs", 0) > 1:
        found.append(
            f"fresh text: the {short(row.details['data_tokens'])} tokens were read {row.details['epochs']:.1f} times"
        )
    return found
