"""Reading prompts in pieces that depend on nothing but the prompt, and keeping states of them on the way.

A prompt of n tokens is read but for the last, which the first step reads: in whole pieces of C tokens from its
beginning, then the rest. Everyone reads like this from the beginning, so equal prompts give equal bits; a state on that
path is "plain". After a reused prefix, reading goes on to the next border of a piece. Where a prompt parts from a text
that was read before, a state is made beside the path and kept: the third such prompt finds it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from hgrn2.layers.key_value_rows import BLOCK
from hgrn2.layers.key_values import KeyValues
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.serve.prefix import PrefixCache
from hgrn2.serve.request import Ticket

TURNED_OFF = "the request asked for none"
FROM_A_STATE = "the text goes on from a saved state"
NO_CACHE = "the server keeps none"


@dataclass(eq=False)
class Reading:
    """A prompt while it is read."""

    ticket: Ticket
    state: ModelState
    """Of one sequence; a value: every piece makes a new one."""
    done: int = 0
    """Tokens read."""
    plain: bool = True
    fork: int = 0
    """Where a state is kept on the way; 0: nowhere."""

    @property
    def ids(self) -> np.ndarray:
        """The prompt."""
        return self.ticket.request.ids

    @property
    def left(self) -> int:
        """Tokens that are still to be read before the first step."""
        return len(self.ids) - 1 - self.done


class Reader:
    """Reads prompts piece by piece with one model, and its cache of prefixes."""

    def __init__(self, model: LanguageModel, chunk: int, cache: PrefixCache | None) -> None:
        self.model, self.chunk, self.cache = model, chunk, cache

    def begin(self, ticket: Ticket) -> Reading:
        """Look for a state to go on from."""
        request, device = ticket.request, self.model.device
        if request.start is not None:
            ticket.why = FROM_A_STATE
            return Reading(ticket, request.start.state.to(device), plain=False)
        if self.cache is None or not request.cache:
            ticket.why = NO_CACHE if self.cache is None else TURNED_OFF
            return Reading(ticket, self.model.zeros(1))
        found = self.cache.find(request.owner, request.ids, chunk=self.chunk, exact=request.seeded)
        ticket.found, ticket.why = replace(found, state=None), found.why
        fork = found.shared // self.chunk * self.chunk if request.seeded else found.shared
        fork = fork if found.tokens < fork < len(request.ids) - 1 else 0
        if found.state is None:
            return Reading(ticket, self.model.zeros(1), fork=fork)
        return Reading(ticket, found.state.to(device), found.tokens, found.plain, fork)

    def advance(self, one: Reading) -> None:
        """Read up to the next border of a piece."""
        end = min(len(one.ids) - 1, (one.done // self.chunk + 1) * self.chunk)
        one.plain = one.plain and one.done % self.chunk == 0  # else a reused prefix ended within this piece
        if one.done < one.fork <= end:
            self._keep(one, one.fork, self._read(one, one.fork), one.plain)
        one.state, one.done = self._read(one, end), end
        if not one.left:
            self._keep(one, one.done, one.state, one.plain)

    def finished(self, ticket: Ticket, new: list[int], state: ModelState) -> None:
        """Keep the state after a text that was written: it has read all of the prompt and of `new` but the last."""
        request = ticket.request
        if self.cache is not None and request.cache and request.start is None:
            ids = np.concatenate([request.ids, np.asarray(new[:-1], dtype=np.int64)])
            self.cache.keep(request.owner, ids, state, plain=False)

    def _read(self, one: Reading, end: int) -> ModelState:
        part = torch.from_numpy(one.ids[one.done : end]).to(self.model.device)
        with reading(self.model):
            _, state = self.model.hidden(part.unsqueeze(0), _with_room(one.state, end - one.done))
        assert state is not None  # asked for, as `output_state` is by default
        return state

    def _keep(self, one: Reading, tokens: int, state: ModelState, plain: bool) -> None:
        request = one.ticket.request
        if self.cache is not None and request.cache and request.start is None:
            self.cache.keep(request.owner, one.ids[:tokens], state, plain=plain)


def _with_room(state: ModelState, tokens: int) -> ModelState:
    """The same state with memory for keys and values of so many more tokens, in blocks: what a text takes is known."""
    return ModelState(
        tuple(layer.with_room(tokens, BLOCK) if isinstance(layer, KeyValues) else layer for layer in state.layers)
    )
