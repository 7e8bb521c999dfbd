"""Training batches as a pure function of (seed, step): nothing to save for an exact resume, nothing to keep in step.

With n = tokens - 1 (the last token is only ever a target) and sequences of T, an epoch is N = max(1, (n - T + 1) // T)
windows [phase + wT, phase + (w+1)T), visited once each in a random order. The phase is drawn anew for each epoch from
[0, n - NT], so that tokens meet other neighbours at other places and none is left out for ever. Sequence g of the run
is window `permute(g mod N)` of epoch g // N; step s takes sequences sB .. (s+1)B - 1. Memory is O(B) in all of it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hgrn2.data.corpus import Corpus
from hgrn2.data.permutation import GOLDEN, keys, mix, permute
from hgrn2.settings import refuse


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which tokens make the batch of a step."""

    sequence_length: int
    """T, tokens of one sequence."""
    batch_size: int
    """B, sequences of one step over all ranks together."""
    seed: int = 0
    """Decides the order; in [0, 2^64)."""
    reset_at_documents: bool = False
    """Give `cu_seqlens`, so that the states start anew at each document inside a sequence."""
    rank: int = 0
    """Which part of the batch this process takes: sequences [rank * B / world, (rank + 1) * B / world)."""
    world: int = 1
    """How many processes share the batch."""

    def __post_init__(self) -> None:
        for name in ("sequence_length", "batch_size", "world"):
            refuse(getattr(self, name) < 1, f"{name} must be at least 1, not {getattr(self, name)}")
        refuse(not 0 <= self.seed < 2**64, f"seed must lie in [0, 2^64), not {self.seed}")
        refuse(not 0 <= self.rank < self.world, f"rank must lie in [0, {self.world}), not {self.rank}")
        refuse(self.batch_size % self.world != 0, f"batch_size {self.batch_size} does not divide by world {self.world}")

    def sequences(self, step: int, part: int = 0, parts: int = 1) -> np.ndarray:
        """Numbers of this rank's sequences of a step, or of one of `parts` equal parts of them, among those of the run:
        int64 [rows]."""
        rows = self.batch_size // self.world
        refuse(rows % parts != 0, f"{rows} sequences do not divide into {parts} equal parts")
        if step < 0 or not 0 <= part < parts:
            raise IndexError(f"step {step}, part {part} of {parts}")
        rows //= parts
        first = step * self.batch_size + (self.rank * parts + part) * rows
        return np.arange(first, first + rows, dtype=np.int64)


class Batch(NamedTuple):
    """Inputs and targets, int64 [B, T] each, `targets[b, t]` being the token after `inputs[b, t]`.

    `cu_seqlens`, int64 [N + 1] or None: boundaries over the B * T inputs laid end to end, from 0 to B * T. Each row
    starts one, and so does each document inside a row (a document starts after the separator of the one before it).
    """

    inputs: np.ndarray
    targets: np.ndarray
    cu_seqlens: np.ndarray | None


class Batches:
    """The batches of a corpus under a plan. Refuses a corpus shorter than one sequence and its last target."""

    def __init__(self, corpus: Corpus, plan: BatchPlan) -> None:
        self.corpus = corpus
        self.plan = plan
        self._tokens = corpus.n_tokens - 1
        length = plan.sequence_length
        refuse(
            self._tokens < length,
            f"corpus shorter than one sequence: {corpus.name} has {corpus.n_tokens} tokens, "
            f"sequence_length {length} needs {length + 1}",
        )
        self.windows_per_epoch = max(1, (self._tokens - length + 1) // length)

    def epochs(self, steps: int) -> float:
        """How many epochs a number of steps goes through."""
        return steps * self.plan.batch_size / self.windows_per_epoch

    def starts(self, sequences: np.ndarray) -> np.ndarray:
        """Where in the corpus each sequence of the run, counted from 0, begins: int64 [n]."""
        epoch, place = np.divmod(np.asarray(sequences, dtype=np.int64), self.windows_per_epoch)
        key = keys(self.plan.seed, epoch)
        window = permute(place, self.windows_per_epoch, key)
        phases = self._tokens - self.windows_per_epoch * self.plan.sequence_length + 1
        phase = mix(key ^ np.uint64(GOLDEN)) % np.uint64(phases)
        return phase.astype(np.int64) + window * self.plan.sequence_length

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """This rank's sequences of a step, or one of `parts` equal parts of them (gradient accumulation)."""
        starts = self.starts(self.plan.sequences(step, part, parts)).tolist()
        return packed([(self.corpus, start) for start in starts], self.plan)


def packed(rows: list[tuple[Corpus, int]], plan: BatchPlan) -> Batch:
    """The batch whose rows begin at these places."""
    length = plan.sequence_length
    tokens = np.stack([corpus.read(start, length + 1) for corpus, start in rows])
    borders = None
    if plan.reset_at_documents and any(corpus.n_documents > 1 for corpus, _ in rows):
        found = [np.arange(len(rows) + 1, dtype=np.int64) * length]
        for row, (corpus, start) in enumerate(rows):
            found.append(corpus.starts_between(start + 1, start + length) - start + row * length)
        borders = np.sort(np.concatenate(found))
    return Batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]), borders)
