"""What attention carries: every key and value so far, as a value that grows.

Tokens are appended to a buffer that is made twice as large when it is full, so that a text of S tokens costs O(S)
copies. States stay values all the same: a state sees the first `lengths` tokens of the buffer, what is appended lies
behind them, and only one state may append in place. A second one that goes on from the same text (a fork) copies.

With a window W no token sees further back than W - 1 tokens, and a state is the last W - 1 of them and how many there
were before. The buffer then holds a few more, which are let go when they are as many again: O(1) copies a token.
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
    """[B,C,2,H,n]: token t of sequence b at [b,t - dropped[b]]; what lies behind lengths[b] means nothing, and is
    finite."""
    lengths: tuple[int, ...]
    """Tokens of each sequence in the buffer."""
    conv: Tensor | None = None
    """The last W-1 inputs of the short convolution [B,W-1,3D], oldest first; None without one."""
    window: int = 0
    """W; 0: every token is kept."""
    dropped: tuple[int, ...] = ()
    """Tokens of each sequence before those in the buffer; empty for none."""
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

    def places(self, tokens: int, padding_mask: Tensor | None) -> Tensor:
        """Where in the buffer each of the next tokens goes, [1 or B,T]; for padding, where the token before does
        (0 without one)."""
        device = self.buffer.device
        if padding_mask is None and not self.ragged:
            return torch.arange(self.longest, self.longest + tokens, device=device).unsqueeze(0)
        before = torch.tensor(self.lengths, device=device).unsqueeze(1)
        if padding_mask is None:
            return before + torch.arange(tokens, device=device)
        return (before + padding_mask.cumsum(1) - 1).clamp_min(0)

    def positions(self, places: Tensor) -> Tensor:
        """Where in its sequence a token stands that is at these places of the buffer, [1 or B,T]."""
        if not any(self.dropped):
            return places
        return places + torch.tensor(self.dropped, device=places.device).unsqueeze(1)

    def trimmed(self) -> "KeyValues":
        """The same state with no more in its buffer than the window needs; copies where sequences differ in length."""
        size = self.window - 1
        if not self.window or self.longest <= size:
            return self
        first = [max(0, length - size) for length in self.lengths]
        dropped = tuple(old + more for old, more in zip(self.dropped or (0,) * self.batch, first, strict=True))
        if self.ragged:
            device = self.buffer.device
            slots = torch.tensor(first, device=device).unsqueeze(1) + torch.arange(size, device=device)
            buffer = self.buffer[
                torch.arange(self.batch, device=device).unsqueeze(1), slots.clamp_max(self.longest - 1)
            ]
        else:
            buffer = self.seen[:, first[0] :]
        return replace(
            self, buffer=buffer, lengths=tuple(min(n, size) for n in self.lengths), dropped=dropped, permit=[]
        )

    def released(self) -> "KeyValues":
        """The same state without a buffer of much more than its window."""
        if not self.window or self.longest <= 2 * max(self.window, SMALLEST):
            return self
        kept = self.trimmed()
        if kept.buffer.requires_grad:
            return kept
        return replace(kept, buffer=kept._copy(0), permit=[None])

    def with_room(self, tokens: int, block: int) -> "KeyValues":
        """The same state in a buffer into which so many more tokens may be written in place; a new one holds a
        multiple of `block` tokens, and no more than it takes."""
        size = self.longest + tokens
        if size <= self.buffer.shape[1] and self.permit:
            return self
        buffer = self.buffer.new_zeros(self.batch, -(-size // block) * block, *self.buffer.shape[2:])
        buffer[:, : self.longest] = self.seen
        return replace(self, buffer=buffer, permit=[None])

    def append(self, new: Tensor, places: Tensor, padding_mask: Tensor | None) -> "KeyValues":
        """The state after the tokens `new` [B,T,2,H,n], of which those whose `padding_mask` [B,T] is False are left
        out."""
        counts = [new.shape[1]] * self.batch if padding_mask is None else padding_mask.sum(1).tolist()
        lengths = tuple(old + more for old, more in zip(self.lengths, counts, strict=True))
        new = new.to(self.buffer.dtype)
        size = max(lengths, default=0)
        rows = torch.arange(self.batch, device=new.device).unsqueeze(1).expand(new.shape[:2])
        places = places.expand(new.shape[:2])
        if padding_mask is not None:
            rows, places, new = rows[padding_mask], places[padding_mask], new[padding_mask]
        if torch.is_grad_enabled() and (new.requires_grad or self.buffer.requires_grad):
            grown = torch.nn.functional.pad(self.seen, (0,) * 6 + (0, size - self.longest))
            return replace(self, buffer=grown.index_put((rows, places), new), lengths=lengths, permit=[])
        mine = self._may_append(size)
        buffer = self.buffer if mine else self._copy(size)
        if padding_mask is None and not self.ragged:
            buffer[:, self.longest : size] = new
        else:
            buffer[rows, places] = new
        return replace(self, buffer=buffer, lengths=lengths, permit=[None])

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
        kept, conv = self.trimmed(), None if self.conv is None else change(self.conv)
        return replace(kept, buffer=change(kept.seen), conv=conv, permit=[])

    def select(self, rows: Rows) -> "KeyValues":
        """A copy of the sequences `rows`, in that order."""
        chosen = torch.arange(self.batch)[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        kept = self.trimmed()
        lengths = tuple(kept.lengths[row] for row in chosen)
        index = torch.tensor(chosen, dtype=torch.int64, device=self.buffer.device)
        return KeyValues(
            kept.buffer[:, : max(lengths, default=0)].index_select(0, index), lengths,
            None if self.conv is None else self.conv.index_select(0, index), self.window,
            tuple(kept.dropped[row] for row in chosen) if kept.dropped else (),
        )  # fmt: skip

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
        other = other.trimmed()
        return replace(other, buffer=other.seen.to(self.buffer, copy=True), conv=conv, permit=[])

    def tensors(self) -> dict[str, Tensor]:
        """`keys_values` [B,S,2,H,n]; `lengths` [B] where they differ, with zeros behind the ends; `dropped` [B] where
        there is a window; `conv` if any."""
        kept, device = self.trimmed(), self.buffer.device
        found = {"keys_values": kept.seen}
        if kept.ragged:
            lengths = torch.tensor(kept.lengths, device=device)
            inside = torch.arange(kept.longest, device=device) < lengths.unsqueeze(1)
            found = {"keys_values": kept.seen * inside[:, :, None, None, None], "lengths": lengths}
        if self.window:
            found["dropped"] = torch.tensor(kept.dropped or (0,) * self.batch, device=device)
        return found | ({} if self.conv is None else {"conv": self.conv})

    def shapes(self, tokens: int) -> dict[str, list[int]]:
        """Shapes [B,...] of `tensors` after so many tokens of each sequence."""
        tokens = min(tokens, self.window - 1) if self.window else tokens
        found = {"keys_values": [self.batch, tokens, *self.buffer.shape[2:]]}
        found |= {"dropped": [self.batch]} if self.window else {}
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
        if self.window and found.shape[1] >= self.window:
            raise UserError(f"state tensor {where}keys_values holds {found.shape[1]} tokens, the window {self.window}")
        counts = {"lengths": (found.shape[1],) * found.shape[0], "dropped": ()}
        for name, most in (("lengths", found.shape[1]), ("dropped", 2**53)):
            if name not in named:
                continue
            stated = named[name]
            good = stated.shape == found.shape[:1] and stated.dtype == torch.int64
            if not good or (stated.numel() and not 0 <= int(stated.min()) <= int(stated.max()) <= most):
                raise UserError(f"state tensor {where}{name} does not fit {where}keys_values")
            counts[name] = tuple(stated.tolist())
        return KeyValues(found, counts["lengths"], conv, self.window, counts["dropped"])


def join(states: list[KeyValues]) -> KeyValues:
    """The sequences of several states, one after the other."""
    states = [state.trimmed() for state in states]
    size = max(state.longest for state in states)
    padded = [torch.nn.functional.pad(s.seen, (0,) * 6 + (0, size - s.longest)) for s in states]
    lengths = tuple(length for state in states for length in state.lengths)
    convs = [state.conv for state in states if state.conv is not None]
    dropped = tuple(n for state in states for n in state.dropped or (0,) * state.batch)
    return KeyValues(torch.cat(padded), lengths, torch.cat(convs) if convs else None, states[0].window, dropped)


def with_conv(state: KeyValues, conv: Tensor | None) -> KeyValues:
    """The same state beside these inputs of the convolution."""
    return replace(state, conv=conv)
