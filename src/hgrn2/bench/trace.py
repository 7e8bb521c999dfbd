"""A trace of torch.profiler as milliseconds of each group: of the operators on a CPU, of the kernels on a GPU.

Read from the trace's JSON, which has both and says which operator started a kernel. An operator's part of the model is
that of the module around it; in the backward, that of the operator whose gradient is computed (both have one sequence
number). Kernels of a captured graph have no operator: their names alone count.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hgrn2.bench.groups import GAPS, group_of, part_of

MARK = "hgrn2.step"
"""The annotation around what is to be counted."""
PART = "hgrn2.part:"
"""Before the name of a module's class."""
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass
class Times:
    """What a trace has of each group."""

    ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Including the gaps: the groups add up to the whole, where kernels do not run side by side."""
    calls: Counter[str] = field(default_factory=Counter)
    names: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    """Milliseconds of each name in a group."""
    whole: float = 0.0
    """Of the GPU from the first kernel to the end of the last one; of a CPU the marked time. Milliseconds."""
    host: float = 0.0
    """The marked time, in which Python started everything. Milliseconds."""

    def add(self, group: str, name: str, microseconds: float) -> None:
        """One call."""
        self.ms[group] += microseconds / 1e3
        self.calls[group] += 1
        self.names[group][name] += microseconds / 1e3


@dataclass
class _Node:
    name: str
    begin: float
    end: float
    id: int
    sequence: int
    backward: bool
    parent: "_Node | None" = None
    inside: float = 0.0
    """Microseconds of what it called."""

    @property
    def own(self) -> float:
        """Microseconds."""
        return max(self.end - self.begin - self.inside, 0.0)

    def around(self) -> Iterable["_Node"]:
        """Itself and what called it, innermost first."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent


def times(events: Sequence[dict[str, Any]], *, gpu: bool) -> Times:
    """Sum up the events of a trace, `traceEvents` of its JSON."""
    nodes = _nested(events)
    parts = _parts(nodes)
    found = Times(host=sum(node.end - node.begin for node in nodes if node.name == MARK) / 1e3)
    if gpu:
        _kernels(events, {node.id: node for node in nodes if node.id >= 0}, parts, found)
    else:
        _operators(nodes, parts, found)
    return found


def _nested(events: Sequence[dict[str, Any]]) -> list[_Node]:
    """Operators and annotations, each with the one around it."""
    threads: dict[Any, list[_Node]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "user_annotation"):
            more = event.get("args", {})
            begin = float(event["ts"])
            node = _Node(
                event["name"], begin, begin + float(event["dur"]), int(more.get("External id", -1)),
                int(more.get("Sequence number", -1)), bool(more.get("Fwd thread id", 0)),
            )  # fmt: skip
            threads[event.get("tid")].append(node)
    for nodes in threads.values():
        nodes.sort(key=lambda node: (node.begin, -node.end))
        open_: list[_Node] = []
        for node in nodes:
            while open_ and node.begin >= open_[-1].end:
                open_.pop()
            if open_:
                node.parent = open_[-1]
                node.parent.inside += node.end - node.begin
            open_.append(node)
    return [node for nodes in threads.values() for node in nodes]


def _parts(nodes: Sequence[_Node]) -> dict[int, str]:
    """Sequence number -> part of the model of the operator whose gradient has it: the last one of the forward."""
    found: dict[int, str] = {}
    for node in sorted(nodes, key=lambda node: node.begin):
        if node.sequence >= 0 and not node.backward:
            found[node.sequence] = _part(node, {})
    return found


def _part(node: _Node | None, parts: dict[int, str]) -> str:
    """Of an operator: what stands around it says so, or the forward of what stands around it."""
    for each in () if node is None else node.around():
        if each.name.startswith((PART, "Optimizer.")):
            return part_of(each.name.removeprefix(PART))
        if each.backward and parts.get(each.sequence):
            return parts[each.sequence]
        if (certain := group_of(each.name)) in ("norms", "loss"):
            return certain
    return ""


def _operators(nodes: Sequence[_Node], parts: dict[int, str], found: Times) -> None:
    """Own time of every operator inside the marks; what is left is Python."""
    for node in nodes:
        if any(each.name == MARK for each in node.around()) and not _annotation(node.name):
            found.add(group_of(node.name, _part(node, parts)), node.name, node.own)
    found.whole = found.host
    found.ms[GAPS] = max(found.whole - sum(found.ms.values()), 0.0)


def _annotation(name: str) -> bool:
    return name == MARK or name.startswith((PART, "Optimizer.", "ProfilerStep"))


def _kernels(events: Sequence[dict[str, Any]], nodes: dict[int, _Node], parts: dict[int, str], found: Times) -> None:
    """Everything that ran on the device, and the time from the first to the last in which nothing did."""
    spans = []
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in _ON_DEVICE:
            begin, lasted = float(event["ts"]), float(event["dur"])
            spans.append((begin, begin + lasted))
            node = nodes.get(int(event.get("args", {}).get("External id", -1)))
            name = event["name"]
            found.add(_kernel_group(name, node, parts), name, lasted)
    if not spans:
        return
    spans.sort()
    busy, end = 0.0, spans[0][0]
    for begin, finish in spans:
        busy += max(finish - max(begin, end), 0.0)
        end = max(end, finish)
    found.whole = (end - spans[0][0]) / 1e3
    found.ms[GAPS] = found.whole - busy / 1e3


def _kernel_group(name: str, node: _Node | None, parts: dict[int, str]) -> str:
    """A kernel's own name first; a nameless element-wise one belongs to the operator that started it."""
    part = _part(node, parts)
    group = group_of(name, part)
    if group != "other" or node is None:
        return group
    asked = group_of(node.name, part)
    return "other" if asked == "dispatch" else asked
