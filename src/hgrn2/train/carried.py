"""States that a run hands from each step to the next (truncated backpropagation through time).

Row r of a batch reads on in a stream of its own (`hgrn2.data.streams`), from the state in which row r of the step
before ended: its values without their history, so that gradients reach back to the beginning of the step and no
further. Of packed documents the first one of a row goes on, the others begin anew, and the last one leaves its state.
"""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.state import ModelState
from hgrn2.settings import refuse

PREFIX = "carried/"
"""Of these states' names in a checkpoint."""


class Rows(NamedTuple):
    """Where the rows [B] of one part of a step have their states among those of its packed documents."""

    documents: int
    """N, states of the part: B where nothing is packed."""
    firsts: list[int]
    """The document with which each row begins."""
    lasts: list[int]
    """The one with which it ends."""
    goes_on: list[int]
    """Rows that begin with the state of the step before."""

    @classmethod
    def of(cls, goes_on: np.ndarray, cu_seqlens: np.ndarray | None) -> "Rows":
        """Of rows of equal length, with the offsets of their documents where they are packed."""
        rows, kept = len(goes_on), np.flatnonzero(goes_on).tolist()
        if cu_seqlens is None:
            return cls(rows, list(range(rows)), list(range(rows)), kept)
        begins = np.searchsorted(cu_seqlens, np.arange(rows + 1) * (int(cu_seqlens[-1]) // rows))
        return cls(len(cu_seqlens) - 1, begins[:-1].tolist(), (begins[1:] - 1).tolist(), kept)

    def before(self, model: Any, state: ModelState | None) -> ModelState:
        """States [N] before the first token of each document, from those of the rows [B] after the step before."""
        if state is not None and self.documents == len(self.firsts) == len(self.goes_on):
            return state
        fresh: ModelState = model.zeros(self.documents)
        if state is None or not self.goes_on:
            return fresh
        return fresh.insert([self.firsts[row] for row in self.goes_on], state.select(self.goes_on))

    def after(self, states: ModelState) -> ModelState:
        """States [B] of the rows after their last token, from those of all documents [N], without their history."""
        return (states if self.documents == len(self.lasts) else states.select(self.lasts)).detach()


class CarriedStates:
    """The states of a run's rows between two steps: one value for each accumulation part, which take turns."""

    def __init__(self, parts: int) -> None:
        self._parts: deque[ModelState | None] = deque([None] * parts)

    @property
    def next(self) -> ModelState | None:
        """What the part that comes next begins with; None before the first step."""
        return self._parts[0]

    def took(self, state: ModelState) -> None:
        """The part that came next has ended with this state."""
        self._parts.popleft()
        self._parts.append(state)

    def tensors(self, model: Any) -> dict[str, Tensor]:
        """The states of all rows of this process for a checkpoint, complex numbers as pairs of real ones."""
        parts = [part for part in self._parts if part is not None]
        if not parts:
            return {}
        whole = parts[0] if len(parts) == 1 else model.zeros(sum(part.batch for part in parts))
        if len(parts) > 1:
            first = 0
            for part in parts:
                whole = whole.insert(list(range(first, first + part.batch)), part)
                first += part.batch
        return {PREFIX + name: _as_real(x.detach()).cpu() for name, x in whole.tensors().items()}

    def load(self, model: Any, tensors: dict[str, Tensor], where: Any) -> None:
        """Take back what `tensors` gave.

        Raises:
            UserError: states that are missing, or are not this model's.
        """
        like: ModelState = model.zeros(1)
        pairs = {name: x.is_complex() for name, x in like.tensors().items()}
        device = {name: x.device for name, x in like.tensors().items()}
        named = {name.removeprefix(PREFIX): x for name, x in tensors.items()}
        try:
            refuse(not named, "none are there")
            kept = {n: torch.view_as_complex(x) if pairs.get(n) else x for n, x in named.items()}
            whole = ModelState.from_tensors({n: x.to(device.get(n, "cpu")) for n, x in kept.items()}, like)
            rows, cuts = divmod(whole.batch, len(self._parts))
            refuse(cuts != 0, f"they are of {whole.batch} rows")
        except (UserError, RuntimeError) as error:
            raise UserError(f"{where} is damaged: its carried states do not fit ({error})") from None
        split = [whole.select(list(range(n * rows, (n + 1) * rows))) for n in range(len(self._parts))]
        self._parts = deque(split)


def _as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x).contiguous() if x.is_complex() else x.contiguous()
