"""What attention carries: every key and value so far, as a value that grows.

Tokens are appended to a buffer that is made twice as large when it is full, so that a text of S tokens costs O(S)
copies. States stay values all the same: a state sees the first `lengths` tokens of the buffer, what is appended lies
behind them, and only one state may append in place. A second one that goes on from the same text (a fork) copies.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.state import Rows, check_names, kind

SMALLEST = 64
"""Tokens for which a buffer is made at least."""


@dataclass(frozen=True)
class KeyValues:
    """Keys, already turned by their positions, and values of B sequences, each with a length of its own."""

    buffer: Tensor
    """[B,C,2,H,n]: token t of sequence b at [b,t]; what lies behind lengths[b] means nothing, and is finite."""
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    conv: Tensor | None = None
    """The last W-1 inputs of the short convolution [B,W-1,3D], oldest first; None without one."""
    permit: list[None] = field(default_factory=list, repr=False, compare=False)
    """One entry where the buffer may be appended to in place; whoever does so takes it out."""

    @property
    def batch(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths, default=0)

    @property
    def ragged(self) -> bool:
        """Whether sequences differ in length."""
        return len(set(self.lengths)) > 1

    @property
    def seen(self) -> Tensor:
        """The buffer up to the longest sequence [B,S,2,H,n]."""
        return self.buffer[:, : self.longest]

    def places(self, tokens: int, keep: Tensor | None) -> Tensor:
        """Where in its sequence each of the next tokens stands, [1 or B,T]; for padding, where the token before does
        (0 without one)."""
        device = self.buffer.device
        if keep is None and not self.ragged:
            return torch.arange(self.longest, self.longest + tokens, device=device).unsqueeze(0)
        before = torch.tensor(self.lengths, device=device).unsqueeze(1)
        if keep is None:
            return before + torch.arange(tokens, device=device)
        return (before + keep.cumsum(1) - 1).clamp_min(0)

    def append(self, new: Tensor, places: Tensor, keep: Tensor | None) -> "KeyValues":
        """The state after the tokens `new` [B,T,2,H,n], of which those whose `keep` [B,T] is False are left out."""
        counts = [new.shape[1]] * self.batch if keep is None else keep.sum(1).tolist()
        lengths = tuple(old + more for old, more in zip(self.lengths, counts, strict=True))
        new = new.to(self.buffer.dtype)
        size = max(lengths, default=0)
        rows = torch.arange(self.batch, device=new.device).unsqueeze(1).expand(new.shape[:2])
        places = places.expand(new.shape[:2])
        if keep is not None:
            rows, places, new = rows[keep], places[keep], new[keep]
        if torch.is_grad_enabled() and (new.requires_grad or self.buffer.requires_grad):
            grown = torch.nn.functional.pad(self.seen, (0,) * 6 + (0, size - self.longest))
            return KeyValues(grown.index_put((rows, places), new), lengths)
        mine = self._may_append(size)
        buffer = self.buffer if mine else self._copy(size)
        if keep is None and not self.ragged:
            buffer[:, self.longest : size] = new
        else:
            buffer[rows, places] = new
        return KeyValues(buffer, lengths, permit=[None])

    def _may_append(self, size: int) -> bool:
        """Whether `size` tokens go into the buffer and nobody else may write there; if so, nobody else will."""
        buffer = self.buffer
        fixed = buffer.is_inference() and not torch.is_inference_mode_enabled()
        if size > buffer.shape[1] or fixed or buffer.requires_grad:
            return False
        try:
            self.permit.pop()  # at once, whichever thread
        except IndexError:
            return False
        return True

    def _copy(self, size: int) -> Tensor:
        capacity = max(size, 2 * self.longest, SMALLEST)
        buffer = self.buffer.new_zeros(self.batch, capacity, *self.buffer.shape[2:])
        buffer[:, : self.longest] = self.seen
        return buffer

    # --- as of every state

    def map(self, change: Callable[[Tensor], Tensor]) -> "KeyValues":
        """The same state with every tensor changed."""
        return KeyValues(change(self.seen), self.lengths, None if self.conv is None else change(self.conv))

    def select(self, rows: Rows) -> "KeyValues":
        """A copy of the sequences `rows`, in that order."""
        chosen = torch.arange(self.batch)[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        lengths = tuple(self.lengths[row] for row in chosen)
        index = torch.tensor(chosen, dtype=torch.int64, device=self.buffer.device)
        kept = self.buffer[:, : max(lengths, default=0)].index_select(0, index)
        return KeyValues(kept, lengths, None if self.conv is None else self.conv.index_select(0, index))

    def insert(self, rows: Rows, other: "KeyValues") -> "KeyValues":
        """A new state in which the sequences `rows` are those of `other`."""
        parts = [self.select([row]) for row in range(self.batch)]
        chosen = torch.arange(self.batch)[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        for place, row in enumerate(chosen):
            parts[row] = other.select([place])
        return join(parts)

    def overwrite(self, other: "KeyValues") -> "KeyValues":
        """A new state: the values of `other`, of as many sequences or of one for all, in this state's dtype."""
        if other.batch != self.batch:
            other = other.select([0] * self.batch)
        conv = self.conv
        if conv is not None and other.conv is not None:
            conv = other.conv.to(conv)
        return KeyValues(other.seen.to(self.buffer, copy=True), other.lengths, conv)

    def tensors(self) -> dict[str, Tensor]:
        """`keys_values` [B,S,2,H,n]; `lengths` [B] where they differ, with zeros behind the ends; `conv` if any."""
        found = {"keys_values": self.seen}
        if self.ragged:
            lengths = torch.tensor(self.lengths, device=self.buffer.device)
            inside = torch.arange(self.longest, device=self.buffer.device) < lengths.unsqueeze(1)
            found = {"keys_values": self.seen * inside[:, :, None, None, None], "lengths": lengths}
        return found | ({} if self.conv is None else {"conv": self.conv})

    def shapes(self, tokens: int) -> dict[str, list[int]]:
        """Shapes [B,...] of `tensors` after so many tokens of each sequence."""
        found = {"keys_values": [self.batch, tokens, *self.buffer.shape[2:]]}
        return found | ({} if self.conv is None else {"conv": list(self.conv.shape)})

    def restored(self, named: dict[str, Tensor], where: str) -> "KeyValues":
        """The state of these tensors, of any number of sequences and tokens."""
        check_names(set(named) - {"lengths"}, set(self.tensors()) - {"lengths"})
        found, conv = named["keys_values"], named.get("conv")
        for name, tensor, mine, free in (("keys_values", found, self.buffer, 2), ("conv", conv, self.conv, 1)):
            if tensor is None or mine is None:
                continue
            same = tensor.dim() == mine.dim() and tensor.shape[free:] == mine.shape[free:]
            if not same or tensor.dtype != mine.dtype:
                raise UserError(f"state tensor {where}{name} is {kind(tensor)}, this model needs {kind(mine)}")
        lengths = (found.shape[1],) * found.shape[0]
        if "lengths" in named:
            stated = named["lengths"]
            good = stated.shape == found.shape[:1] and not stated.is_floating_point()
            if not good or (stated.numel() and not 0 <= int(stated.min()) <= int(stated.max()) <= found.shape[1]):
                raise UserError(f"state tensor {where}lengths does not fit {where}keys_values")
            lengths = tuple(stated.tolist())
        return KeyValues(found, lengths, conv)


def join(states: list[KeyValues]) -> KeyValues:
    """The sequences of several states, one after the other."""
    size = max(state.longest for state in states)
    padded = [torch.nn.functional.pad(s.seen, (0,) * 6 + (0, size - s.longest)) for s in states]
    lengths = tuple(length for state in states for length in state.lengths)
    convs = [state.conv for state in states if state.conv is not None]
    return KeyValues(torch.cat(padded), lengths, torch.cat(convs) if convs else None)


def with_conv(state: KeyValues, conv: Tensor | None) -> KeyValues:
    """The same state beside these inputs of the convolution."""
    return replace(state, conv=conv)
