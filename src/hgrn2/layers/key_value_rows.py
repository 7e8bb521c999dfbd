"""Keys and values of sequences side by side that come and go: each has a buffer of its own, as if it were alone.

A batch of `KeyValues` pads all of its sequences to the longest one, and the last bits of an output then depend on how
long that is. Here attention goes sequence by sequence: what one of them becomes depends on no other, memory is taken
for one sequence at a time in blocks, and it is free when the sequence leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgrn2.layers.key_values import KeyValues, join
from hgrn2.layers.state import Rows

BLOCK = 256
"""Tokens for which memory is taken at once. A text is copied so often: at most 2 / 256 of what attention reads."""


@dataclass(frozen=True)
class KeyValueRows:
    """B sequences, some of which may be missing: nothing is read or kept for those, and their outputs are zeros."""

    rows: tuple[KeyValues | None, ...]
    """Each of one sequence, without its convolution; None where there is none."""
    like: KeyValues
    """The state of one sequence before its first token."""
    conv: Tensor | None = None
    """The last W-1 inputs of the short convolution of all [B,W-1,3D], oldest first; None without one."""

    @property
    def batch(self) -> int:
        """B."""
        return len(self.rows)

    @property
    def window(self) -> int:
        """As of `KeyValues`."""
        return self.like.window

    def part(self, first: int, count: int) -> "KeyValueRows":
        """`count` sequences from `first` on, in the same memory."""
        conv = None if self.conv is None else self.conv[first : first + count]
        return KeyValueRows(self.rows[first : first + count], self.like, conv)

    def replaced(self, first: int, rows: tuple[KeyValues | None, ...]) -> "KeyValueRows":
        """The same with other sequences from `first` on; their convolutions are not changed."""
        return KeyValueRows((*self.rows[:first], *rows, *self.rows[first + len(rows) :]), self.like, self.conv)

    # --- as of every state

    def map(self, change: Callable[[Tensor], Tensor]) -> "KeyValueRows":
        """The same state with every tensor changed."""
        rows = tuple(None if row is None else row.map(change) for row in self.rows)
        return KeyValueRows(rows, self.like.map(change), None if self.conv is None else change(self.conv))

    def select(self, rows: Rows) -> KeyValues:
        """A copy of the sequences `rows`, in that order, side by side in one buffer."""
        chosen = torch.arange(self.batch)[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        found = join([self.rows[row] or self.like for row in chosen])
        return KeyValues(found.buffer, found.lengths, _chosen(self.conv, chosen), found.window, found.dropped)

    def insert(self, rows: Rows, other: Any) -> KeyValues:
        """A new state in which the sequences `rows` are those of `other`."""
        return self.select(slice(None)).insert(rows, other)

    def overwrite(self, other: Any) -> KeyValues:
        """A new state: the values of `other`, as of `KeyValues`."""
        return self.select(slice(None)).overwrite(other)

    def tensors(self) -> dict[str, Tensor]:
        """As of `KeyValues`."""
        return self.select(slice(None)).tensors()

    def shapes(self, tokens: int) -> dict[str, list[int]]:
        """As of `KeyValues`."""
        return self.select(slice(None)).shapes(tokens)

    def restored(self, named: dict[str, Tensor], where: str) -> KeyValues:
        """As of `KeyValues`."""
        return self.select(slice(None)).restored(named, where)


def no_rows(state: KeyValues) -> KeyValueRows:
    """As many sequences as a state has, all of them missing; its convolution is taken as it is."""
    nothing = state.buffer.new_zeros(1, 0, *state.buffer.shape[2:])
    return KeyValueRows((None,) * state.batch, KeyValues(nothing, (0,), window=state.window), state.conv)


def apart(state: KeyValues) -> KeyValueRows:
    """The sequences of a state, each copied to a buffer of its own."""
    return no_rows(state).replaced(0, tuple(own(state, row) for row in range(state.batch)))


def own(state: KeyValues, row: int = 0) -> KeyValues:
    """One sequence of a state in memory of its own, which is taken in blocks; without its convolution."""
    one = state.select([row])
    return KeyValues(one.buffer, one.lengths, None, one.window, one.dropped).with_room(1, BLOCK)


def _chosen(conv: Tensor | None, rows: list[int]) -> Tensor | None:
    return None if conv is None else conv[rows].clone()
