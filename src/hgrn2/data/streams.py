"""Batches whose rows read on: row r of a step goes on where row r of the step before stopped, in a stream of its own.

The documents of an epoch are put in a random order, drawn anew for each epoch, and cut into B streams of S·T tokens,
S = (n - 1) // (B·T) steps of an epoch of n tokens. Where the first stream begins is drawn too, so that no token is left
out for ever. Step s reads tokens [(s mod S)·T, (s mod S + 1)·T) of every stream. Like the batches of `packing`, these
are a pure function of (seed, step); memory is O(documents).
"""

from typing import NamedTuple

import numpy as np

from hgrn2.data.corpus import Corpus
from hgrn2.data.packing import Batch, BatchPlan
from hgrn2.data.permutation import GOLDEN, keys, mix, permute
from hgrn2.settings import refuse


class StreamBatch(NamedTuple):
    """A `Batch`, and of its rows [B] which go on from the step before; the others begin with an empty state."""

    batch: Batch
    goes_on: np.ndarray


class _Order(NamedTuple):
    """The documents of one epoch, one after the other."""

    epoch: int
    documents: np.ndarray
    """Their numbers in the corpus [d]."""
    ends: np.ndarray
    """Where each of them ends in the epoch's tokens [d]."""
    phase: int
    """Where the first stream begins."""


class Streams:
    """Batches of a corpus under a plan, with rows that read on.

    Raises:
        UserError: a corpus shorter than one step and its last target.
    """

    def __init__(self, corpus: Corpus, plan: BatchPlan) -> None:
        self.corpus, self.plan = corpus, plan
        step = plan.batch_size * plan.sequence_length
        self.steps_per_epoch = (corpus.n_tokens - 1) // step
        refuse(
            self.steps_per_epoch < 1,
            f"corpus shorter than one step: {corpus.name} has {corpus.n_tokens} tokens, {plan.batch_size} rows of "
            f"{plan.sequence_length} that read on need {step + 1}",
        )
        starts = corpus.starts_between(0, corpus.n_tokens)
        self._starts = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), starts]))
        self._lengths = np.diff(np.append(self._starts, corpus.n_tokens))
        self._last: _Order | None = None

    def epochs(self, steps: int) -> float:
        """How many epochs a number of steps goes through."""
        return steps / self.steps_per_epoch

    def batch(self, step: int, part: int = 0, parts: int = 1) -> StreamBatch:
        """This rank's rows of a step, or one of `parts` equal parts of them: always the same rows for a part."""
        rows = self.plan.batch_size // self.plan.world
        refuse(rows % parts != 0, f"{rows} sequences do not divide into {parts} equal parts")
        if step < 0 or not 0 <= part < parts:
            raise IndexError(f"step {step}, part {part} of {parts}")
        rows //= parts
        epoch, place = divmod(step, self.steps_per_epoch)
        order, length = self._order(epoch), self.plan.sequence_length
        streams = np.arange(rows) + (self.plan.rank * parts + part) * rows
        begins = order.phase + (streams * self.steps_per_epoch + place) * length
        tokens = np.stack([self._read(order, begin, length + 1) for begin in begins.tolist()])
        goes_on, borders = np.full(rows, place > 0), None
        if self.plan.reset_at_documents and self.corpus.n_documents > 1:
            goes_on &= ~np.isin(begins, order.ends)
            borders = _borders(order.ends, begins, length)
        inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
        return StreamBatch(Batch(inputs, targets, borders), goes_on)

    def _order(self, epoch: int) -> _Order:
        if self._last is None or self._last.epoch != epoch:
            key = keys(self.plan.seed, np.array([epoch]))
            documents = permute(np.arange(len(self._lengths)), len(self._lengths), key)
            spare = self.corpus.n_tokens - 1 - self.steps_per_epoch * self.plan.batch_size * self.plan.sequence_length
            phase = int((mix(key ^ np.uint64(GOLDEN)) % np.uint64(spare + 1))[0])
            self._last = _Order(epoch, documents, np.cumsum(self._lengths[documents]), phase)
        return self._last

    def _read(self, order: _Order, begin: int, length: int) -> np.ndarray:
        """Tokens [begin, begin + length) of an epoch, over the ends of documents."""
        found, at = [], int(np.searchsorted(order.ends, begin, side="right"))
        while length:
            document = order.documents[at]
            left = int(order.ends[at]) - begin
            taken = min(left, length)
            found.append(self.corpus.read(int(self._starts[document] + self._lengths[document]) - left, taken))
            begin, length, at = begin + taken, length - taken, at + 1
        return np.concatenate(found)


def _borders(ends: np.ndarray, begins: np.ndarray, length: int) -> np.ndarray:
    """`cu_seqlens` of rows that begin at `begins`: a document starts where another one ends."""
    found = [np.arange(len(begins) + 1, dtype=np.int64) * length]
    for row, begin in enumerate(begins.tolist()):
        first, last = np.searchsorted(ends, [begin + 1, begin + length])
        found.append(ends[first:last] - begin + row * length)
    return np.sort(np.concatenate(found))
