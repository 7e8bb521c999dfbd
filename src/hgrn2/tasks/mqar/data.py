"""Sequences of multi-query associative recall, all rows of a batch at once, as a function of seeds and numbers only.

    k_1 v_1 k_2 v_2 … k_P v_P | k_5 x k_2 x x x k_1 x …

P pairs stand first; behind them every key is asked for once, and where it stands again its value is the next token to
be named. This is the task of Zoology (arXiv 2312.04927) with the settings of its published generator (github.com/
HazyResearch/zoology, zoology/data/multiquery_ar.py): keys from 1 … V/2-1 and values from V/2 … V-1, none twice in a
sequence; queries at every second place behind the pairs, drawn one after the other for k_1, k_2, … without replacement
with weights g^(a-1) for the g-th place; everything else behind the pairs is any token at all.
"""

from typing import NamedTuple

import numpy as np

from hgrn2.memory import refuse_too_big
from hgrn2.tasks.mqar.config import MQARData, Segment

REDRAWN_FROM = 16
"""Numbers a row from which on Floyd's loop over them takes longer than drawing rows anew."""


class Sequences(NamedTuple):
    """A batch of B sequences of T tokens with P queries each; int64."""

    tokens: np.ndarray
    """[B,T]."""
    positions: np.ndarray
    """[B,P]: where the queries stand, for the pairs in their order."""
    answers: np.ndarray
    """[B,P]: the values that belong there."""


def sequences(rng: np.random.Generator, segment: Segment, count: int, vocab_size: int, data: MQARData) -> Sequences:
    """`count` sequences of a segment; of its `examples` nothing is asked here."""
    pairs, behind = segment.pairs, 2 * segment.pairs
    keys = 1 + distinct(rng, count, pairs, vocab_size // 2 - 1)
    values = vocab_size // 2 + distinct(rng, count, pairs, vocab_size - vocab_size // 2)
    tokens = np.zeros((count, segment.length), np.int64)
    if data.fill == "random":
        tokens[:, behind:] = rng.integers(0, vocab_size, (count, segment.length - behind))
    tokens[:, 0:behind:2], tokens[:, 1:behind:2] = keys, values
    positions = behind + 2 * gaps(rng, count, segment, data.power)
    np.put_along_axis(tokens, positions, keys, axis=1)
    return Sequences(tokens, positions, values)


def distinct(rng: np.random.Generator, rows: int, count: int, choices: int) -> np.ndarray:
    """[rows,count] numbers below `choices`, none twice in a row, every ordered selection equally likely.

    Many of very many: rows in which a number comes twice are drawn anew until there are none, at most some three draws
    a row. Else Robert Floyd's method: the i-th draw is from the first choices - count + i + 1 numbers, and a number
    that was had before gives way to the last of them; it makes even sets but no even order, so rows are shuffled.
    """
    if count >= REDRAWN_FROM and count * count <= 2 * choices:
        return _redrawn(rng, rows, count, choices)
    tops = np.arange(choices - count, choices)
    drawn = rng.integers(0, tops + 1, (rows, count))
    for i in range(1, count):
        had = (drawn[:, :i] == drawn[:, i : i + 1]).any(1)
        drawn[had, i] = tops[i]
    return np.take_along_axis(drawn, rng.random((rows, count)).argsort(1), 1)


def _redrawn(rng: np.random.Generator, rows: int, count: int, choices: int) -> np.ndarray:
    drawn, again = np.empty((rows, count), np.int64), np.arange(rows)
    while again.size:
        drawn[again] = rng.integers(0, choices, (again.size, count))
        ordered = np.sort(drawn[again], 1)
        again = again[(ordered[:, 1:] == ordered[:, :-1]).any(1)]
    return drawn


def gaps(rng: np.random.Generator, rows: int, segment: Segment, power: float) -> np.ndarray:
    """[rows,P] places from 0 on, none twice in a row, drawn one after the other in proportion to (place + 1)^(power-1).

    A race has the same odds: each place arrives after an exponential time with its weight as the rate, and the first P
    to arrive are taken in that order.
    """
    weights = np.arange(1, segment.gaps + 1, dtype=np.float64) ** (power - 1)
    return (rng.exponential(size=(rows, segment.gaps)) / weights).argsort(1)[:, : segment.pairs]


class Examples:
    """Batches of the training and the test segments: batch n of a segment is the same whenever it is asked for."""

    def __init__(self, data: MQARData, vocab_size: int, batch_size: int) -> None:
        self.data, self.vocab_size, self.batch_size = data, vocab_size, batch_size
        _check_sizes(data, batch_size)
        counts = [segment.examples // batch_size for segment in data.train_segments]
        self.batches = [(place, number) for place, count in enumerate(counts) for number in range(count)]
        """Training batches of an epoch, segment after segment; what is left of a segment's examples is not used."""
        self._tests: dict[int, Sequences] = {}

    @property
    def mean_tokens(self) -> int:
        """Tokens of a training batch, on average over an epoch."""
        lengths = [self.data.train_segments[place].length for place, _ in self.batches]
        return round(self.batch_size * sum(lengths) / len(lengths))

    def train(self, step: int, seed: int) -> Sequences:
        """The training batch of a step; every batch comes once in an epoch, in an order that `seed` decides."""
        epoch, number = divmod(step, len(self.batches))
        if self.data.order == "shuffled":
            number = int(np.random.default_rng((seed, epoch)).permutation(len(self.batches))[number])
        place, batch = self.batches[number]
        rng = np.random.default_rng((self.data.seed, 0, place, batch))
        return sequences(rng, self.data.train_segments[place], self.batch_size, self.vocab_size, self.data)

    def test(self, place: int) -> Sequences:
        """All examples of a test segment, from another stream of random numbers than training has; they are kept, as
        they are asked for at every evaluation."""
        if place not in self._tests:
            segment = self.data.test_segments[place]
            rng = np.random.default_rng((self.data.seed, 1, place))
            self._tests[place] = sequences(rng, segment, segment.examples, self.vocab_size, self.data)
        return self._tests[place]


def _check_sizes(data: MQARData, batch_size: int) -> None:
    """Refuse more batches than their list, and test sequences than their ids, have room in memory."""
    batches = sum(one.examples // batch_size for one in data.train_segments)
    refuse_too_big(64 * batches, f"the list of {batches:,} training batches needs", "make data.train smaller")
    for one in data.test_segments:
        refuse_too_big(8 * one.length * one.examples, f"test segment {one} needs", "make data.test smaller")
