"""Rows that read on: every token at most once an epoch, in documents of one piece, the same for any number of ranks."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hgrn2.data.corpus import Corpus
from hgrn2.data.packing import BatchPlan
from hgrn2.data.streams import Streams
from hgrn2.errors import UserError

LENGTHS = (3, 40, 1, 1, 17, 90, 2, 33, 64, 5, 8, 8)


class Counting(Corpus):
    """A corpus whose token at place p is p, so that a batch shows where it was read."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.n_tokens, self.n_documents, self.name = sum(lengths), len(lengths), "counting"
        self.starts = np.cumsum([0, *lengths])[:-1]

    def read(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start <= self.n_tokens - length
        return np.arange(start, start + length)

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        return self.starts[(start <= self.starts) & (self.starts < stop)]


PLAN = BatchPlan(sequence_length=8, batch_size=4, seed=3, reset_at_documents=True)


def test_rows_read_on_through_whole_documents() -> None:
    corpus = Counting(LENGTHS)
    streams = Streams(corpus, PLAN)
    assert streams.steps_per_epoch == (corpus.n_tokens - 1) // 32 == 8
    orders = []
    for epoch in range(2):
        steps = [streams.batch(epoch * 8 + step) for step in range(8)]
        rows = np.concatenate([one.batch.inputs for one in steps], axis=1)
        targets = np.concatenate([one.batch.targets for one in steps], axis=1)
        assert np.unique(rows).size == rows.size  # no token twice
        assert np.array_equal(rows[:, 1:], targets[:, :-1])
        jumps = np.diff(rows, prepend=rows[:, :1]) != 1
        assert np.isin(rows[jumps], [*corpus.starts, *rows[:, 0]]).all()  # a row leaves a document at its end only
        begun = np.isin(rows, corpus.starts)
        begun[:, 0] = True
        said = np.zeros_like(begun)
        for step, one in enumerate(steps):
            assert one.batch.cu_seqlens is not None
            flat = np.zeros(32, dtype=bool)
            flat[one.batch.cu_seqlens[:-1]] = True
            found = flat.reshape(4, 8)
            found[:, 0] = ~one.goes_on
            said[:, step * 8 : step * 8 + 8] = found
        assert np.array_equal(said, begun)
        assert not steps[0].goes_on.any()
        orders.append(rows)
    assert not np.array_equal(*orders)


def test_parts_and_ranks_have_the_same_rows() -> None:
    whole = Streams(Counting(LENGTHS), PLAN).batch(5)
    parts = [
        Streams(Counting(LENGTHS), replace(PLAN, rank=rank, world=2)).batch(5, part, 2)
        for rank in range(2)
        for part in range(2)
    ]
    assert np.array_equal(np.concatenate([one.batch.inputs for one in parts]), whole.batch.inputs)
    assert np.array_equal(np.concatenate([one.goes_on for one in parts]), whole.goes_on)


def test_one_text_is_read_on_without_borders() -> None:
    streams = Streams(Counting((200,)), PLAN)
    steps = [streams.batch(step) for step in range(streams.steps_per_epoch)]
    assert all(one.batch.cu_seqlens is None for one in steps)
    assert [one.goes_on.all() for one in steps] == [False, *[True] * 5]
    for before, after in pairwise(steps):
        assert np.array_equal(before.batch.targets[:, -1], after.batch.inputs[:, 0])


def test_a_corpus_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="4 rows of 8 that read on need 33"):
        Streams(Counting((32,)), PLAN)
    assert Streams(Counting((33,)), PLAN).steps_per_epoch == 1
