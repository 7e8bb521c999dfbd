"""Texts that were read before, as a tree of their tokens with states at some of its nodes.

A state belongs to one exact place of one exact text, at any token: nothing is rounded to blocks. A lookup finds the
longest text with a state that a prompt begins with, all but the prompt's last token, which is always read anew (its
output is what the first new token is chosen from). Two owners never share a tree: how quickly a prompt is answered
would tell one of them what the other has asked.

A state that was read in the pieces in which everyone reads from the beginning ("plain", see the engine) gives the same
text bit for bit as reading anew; others differ from it by the rounding of float32. A request with a seed of its own is
only given the former.
"""

import contextlib
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hgrn2.layers.state import ModelState
from hgrn2.serve.rows import StateRows, spill_folder
from hgrn2.serve.settings import MIB, PrefixConfig

NODE = 600  # bytes of a node beside its tokens, about
FORMER = 1024  # texts whose state was evicted and that are still known, to say so


class _Node:
    """A place in the tree: the text down to it has `depth` tokens, the last of which are `edge`."""

    __slots__ = ("children", "depth", "edge", "entry", "evicted", "parent")

    def __init__(self, parent: "_Node | None", edge: np.ndarray, depth: int) -> None:
        self.parent, self.edge, self.depth = parent, edge, depth
        self.children: dict[int, _Node] = {}
        self.entry: _Entry | None = None
        self.evicted = False  # it had a state until others needed the space


@dataclass
class _Entry:
    """A state in memory (`row`) or in a file."""

    plain: bool
    row: int | None
    path: Path | None = None
    checksum: int = 0


@dataclass(frozen=True)
class Found:
    """What is known of a prompt."""

    state: ModelState | None
    """A copy of the state to go on from; None where there is none."""
    tokens: int
    """Tokens that it has read, 0 for None."""
    plain: bool
    why: str | None
    """Why there is none; None for a hit."""
    shared: int
    """Tokens that the prompt has in common with a text of the tree: where the next one may part as well."""


NOTHING_KEPT = "nothing is kept yet"
OTHER_BEGINNING = "no kept text begins like this"
NO_STATE = "kept texts begin like this, but none has a state within the common part"
EVICTED = "the state of this text had to make room for others"
OTHER_PIECES = "kept states of this text were read in other pieces, which a request with a seed does not use"
ROUNDED = "kept states are held in eight bits, which a request with a seed does not use"
DAMAGED = "the state's file could not be read back"


class PrefixCache:
    """States of texts, least recently used ones to disk and then away; both bounded in bytes. One thread uses it."""

    def __init__(self, like: ModelState, config: PrefixConfig) -> None:
        self.config = config
        self.rows = StateRows(like, config.cache_mb * MIB, "int8" if config.cache_int8 else "exact")
        self._disk_limit, self._disk_used = config.cache_disk_mb * MIB, 0
        self._edge_limit = config.cache_mb * MIB // 4
        self._roots: dict[str, _Node] = {}
        self._memory: OrderedDict[_Node, None] = OrderedDict()
        self._disk: OrderedDict[_Node, None] = OrderedDict()
        self._former: OrderedDict[_Node, None] = OrderedDict()
        self._folder: Path | None = None
        self._names = 0
        self.edge_bytes = 0
        """Of the tree: its nodes and their tokens."""

    @property
    def states(self) -> tuple[int, int]:
        """States in memory, and on disk."""
        return len(self._memory), len(self._disk)

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of them, tokens included."""
        return self.rows.used + self.edge_bytes, self._disk_used

    def find(self, owner: str, ids: np.ndarray, *, chunk: int, exact: bool) -> Found:
        """The state of the longest kept text that `ids` [n] begins with, n - 1 tokens at most.

        Args:
            owner: whose tree.
            ids: the prompt.
            chunk: tokens of the pieces in which everyone reads.
            exact: only plain states, at the end of such a piece or at n - 1: what follows is then read in the same
                pieces as without it.
        """
        limit = len(ids) - 1
        path, shared = self._descend(owner, ids[:limit])
        if owner not in self._roots:
            return Found(None, 0, False, NOTHING_KEPT, 0)
        why = OTHER_BEGINNING if shared == 0 else NO_STATE
        for node in reversed(path):
            if node.entry is None:
                why = EVICTED if node.evicted and why == NO_STATE else why
                continue
            if exact and not (node.entry.plain and (node.depth % chunk == 0 or node.depth == limit)):
                why = OTHER_PIECES if self.rows.exact else ROUNDED
                continue
            state = self._read(node)
            if state is not None:
                return Found(state, node.depth, node.entry.plain, None, shared)
            self._drop(node)
            why = DAMAGED
        return Found(None, 0, False, why, shared)

    def keep(self, owner: str, ids: np.ndarray, state: ModelState, *, plain: bool) -> bool:
        """Copy the state after all of `ids` [n] into the cache; whether it was."""
        if len(ids) < self.config.cache_least or not self.rows.holds(len(ids)):
            return False
        plain = plain and self.rows.exact
        node = self._node(owner, np.ascontiguousarray(ids, dtype=np.int32))
        if node.entry is not None and (node.entry.plain or not plain):
            self._touch(node)
            return True
        self._forget_entry(node)
        while self.rows.full(len(ids)):
            self._make_room()
        node.entry = _Entry(plain, self.rows.put(state, len(ids)))
        self._former.pop(node, None)
        node.evicted = False
        self._memory[node] = None
        self._bound_edges()
        return node.entry is not None

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # The tree.

    def _descend(self, owner: str, ids: np.ndarray) -> tuple[list[_Node], int]:
        """Nodes whose whole text `ids` begins with, and how many tokens it has in common with the tree."""
        node, at, path = self._roots.get(owner), 0, []
        while node is not None and at < len(ids):
            child = node.children.get(int(ids[at]))
            if child is None:
                break
            same = _common(child.edge, ids[at:])
            at += same
            if same < len(child.edge):
                break
            path.append(child)
            node = child
        return path, at

    def _node(self, owner: str, ids: np.ndarray) -> _Node:
        """The node of a text, made where it is missing."""
        node, at = self._roots.setdefault(owner, _Node(None, ids[:0], 0)), 0
        while at < len(ids):
            child = node.children.get(int(ids[at]))
            if child is None:
                child = _Node(node, ids[at:].copy(), len(ids))
                node.children[int(ids[at])] = child
                self.edge_bytes += child.edge.nbytes + NODE
                return child
            same = _common(child.edge, ids[at:])
            if same < len(child.edge):
                child = self._split(child, same)
            node, at = child, at + same
        return node

    def _split(self, child: _Node, same: int) -> _Node:
        """Put a node after the first `same` tokens of a child's edge."""
        parent = child.parent
        assert parent is not None  # a root has no edge
        middle = _Node(parent, child.edge[:same].copy(), child.depth - len(child.edge) + same)
        parent.children[int(middle.edge[0])] = middle
        child.parent, child.edge = middle, child.edge[same:].copy()
        middle.children[int(child.edge[0])] = child
        self.edge_bytes += NODE
        return middle

    def _prune(self, node: _Node | None) -> None:
        """Remove what leads to no state any more, from a leaf upwards."""
        while node is not None and not node.children and node.entry is None and not node.evicted:
            parent = node.parent
            if parent is None:
                for owner in [owner for owner, root in self._roots.items() if root is node]:
                    del self._roots[owner]
                return
            del parent.children[int(node.edge[0])]
            self.edge_bytes -= node.edge.nbytes + NODE
            node = parent

    # Where states lie.

    def _read(self, node: _Node) -> ModelState | None:
        entry = node.entry
        assert entry is not None
        if entry.row is not None:
            self._touch(node)
            return self.rows.get(entry.row, node.depth)
        assert entry.path is not None
        state = self.rows.read(entry.path, entry.checksum, node.depth)
        self._touch(node)
        return state

    def _touch(self, node: _Node) -> None:
        for order in (self._memory, self._disk):
            if node in order:
                order.move_to_end(node)

    def _make_room(self) -> None:
        """Move the least recently used state out of memory."""
        node, _ = self._memory.popitem(last=False)
        entry = node.entry
        assert entry is not None
        assert entry.row is not None
        row, entry.row = entry.row, None
        if node.depth >= self.config.cache_least_spilled and self._spill(node, entry, row):
            self._disk[node] = None
        else:
            self._mark_evicted(node)
        self.rows.free(row)

    def _spill(self, node: _Node, entry: _Entry, row: int) -> bool:
        size = self.rows.size(node.depth)
        if size > self._disk_limit:
            return False
        while self._disk_used + size > self._disk_limit:
            self._drop(next(iter(self._disk)))
        self._folder = self._folder or spill_folder()
        self._names += 1
        path = self._folder / f"{self._names}.state"
        try:
            entry.checksum, entry.path = self.rows.spill(row, path), path
        except OSError:  # a full disk: the state is only a copy of what can be read again
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        self._disk_used += size
        return True

    def _drop(self, node: _Node) -> None:
        """Let the state of a node go, wherever it lies."""
        self._forget_entry(node)
        self._mark_evicted(node)

    def _forget_entry(self, node: _Node) -> None:
        entry, node.entry = node.entry, None
        self._memory.pop(node, None)
        self._disk.pop(node, None)
        if entry is not None and entry.row is not None:
            self.rows.free(entry.row)
        if entry is not None and entry.path is not None:
            self._disk_used -= self.rows.size(node.depth)
            with contextlib.suppress(OSError):
                entry.path.unlink()

    def _mark_evicted(self, node: _Node) -> None:
        """A node without a state stays known for a while."""
        node.entry, node.evicted = None, True
        self._former[node] = None
        while len(self._former) > FORMER:
            self._forget_former()

    def _forget_former(self) -> None:
        node, _ = self._former.popitem(last=False)
        node.evicted = False
        self._prune(node)

    def _bound_edges(self) -> None:
        """Tokens may take a quarter of the memory of states."""
        while self.edge_bytes > self._edge_limit and self._former:
            self._forget_former()
        while self.edge_bytes > self._edge_limit and (self._memory or self._disk):
            node = next(iter(self._disk or self._memory))
            self._forget_entry(node)
            self._prune(node)


def _common(edge: np.ndarray, ids: np.ndarray) -> int:
    """Length of the common beginning."""
    size = min(len(edge), len(ids))
    differs = edge[:size] != ids[:size]
    place = int(differs.argmax()) if size else 0
    return place if size and differs[place] else size
