"""What the engine is asked, and what it answers piece by piece; values that go from one thread to another."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.snapshots import Snapshot
from hgrn2.generate.text import Finished
from hgrn2.serve.prefix import Found

Ended = Finished | Literal["cut"]
"""Why a text ends; cut: the server is about to end."""
Trouble = Literal["busy", "large", "late", "broken", "closing"]
"""Too many wait; it never fits; it took too long; the model's output is no number; the server is about to end."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and what is wanted after it."""

    ids: np.ndarray
    """int64 [n], n at least 1: what has to be read. After a snapshot the first is the snapshot's last token."""
    start: Snapshot | None = None
    sampling: SamplingConfig
    """With a seed: sample n has the random numbers of seed + n."""
    seeded: bool = False
    """The seed was asked for: the text must be the same each time, to the last bit."""
    max_tokens: int = 200
    """0: only read the prompt."""
    stop: tuple[str, ...] = ()
    stop_at_eot: bool = True
    samples: int = 1
    logprobs: int | None = None
    """Alternatives for each token that are listed beside it; None: nothing is listed."""
    gates: bool = False
    cache: bool = True
    """Look for states of this prompt, and keep those that come about."""
    snapshot: bool = False
    """Give the snapshot of where each text ends."""
    owner: str = ""
    """Who shares prefixes and takes turns in the queue."""


@dataclass(frozen=True)
class Token:
    """A new token with its logarithm of probability (nats) and the most probable ones in its place."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    gates: list[list[float] | None] | None = None
    """Memory length in tokens of each head of each layer, at the token that was read; see `hgrn2.serve.gates`."""


@dataclass(frozen=True)
class Delta:
    """What a step adds to one text."""

    sample: int
    text: str
    """What is certain now: whole characters, no part of a stop text."""
    tokens: tuple[Token, ...] = ()
    """Listed where log probabilities or gates are asked for."""
    ended: Ended | None = None
    count: int = 0
    """New tokens of the text so far."""
    snapshot: Snapshot | None = None


@dataclass(frozen=True)
class Failure:
    """The request ends here, with all of its texts."""

    trouble: Trouble
    message: str


Event = Delta | Failure


@dataclass(eq=False)
class Ticket:
    """A request on its way through the engine, which alone writes to it, but for `cancelled`."""

    request: Request
    arrived: float
    """Seconds of a monotonic clock."""
    cancelled: bool = False
    """Set by anyone: nobody waits for the answer any more."""
    began: float | None = None
    """When reading began."""
    first: float | None = None
    """When the first token was there."""
    found: Found | None = None
    """What the cache knew, without the state; None where it was not asked."""
    why: str | None = None
    """Why no prefix was reused; None for a hit."""
    open: set[int] = field(default_factory=set)
    """Samples that have not ended."""

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were not read again."""
        return 0 if self.found is None else self.found.tokens
