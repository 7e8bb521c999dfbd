"""Batches as a pure function of (seed, step): every window once an epoch, the same on any number of ranks."""

import numpy as np
import pytest

from hgrn2.data.corpus import Corpus
from hgrn2.data.packing import Batches, BatchPlan
from hgrn2.data.permutation import keys, permute
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.errors import UserError

DOCUMENTS = ["a" * n for n in (3, 40, 1, 1, 17, 90, 2, 33, 64, 5)]


class Counting(Corpus):
    """A corpus whose token at place p is p, so that a batch shows where it was read."""

    def __init__(self, tokens: int) -> None:
        self.n_tokens, self.vocab_size, self.n_documents, self.name = tokens, tokens, 1, "counting"

    def read(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start <= self.n_tokens - length
        return np.arange(start, start + length)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 4097, 100_003])
def test_permutation_is_a_bijection(size: int) -> None:
    for epoch in range(3):
        places = permute(np.arange(size), size, keys(7, np.array([epoch])))
        assert places.dtype == np.int64
        assert np.array_equal(np.sort(places), np.arange(size))


def test_permutation_takes_a_key_each_and_mixes() -> None:
    index = np.arange(1000)
    key = keys(0, index % 2)
    both = permute(index, 1000, key)
    assert np.array_equal(both[::2], permute(index, 1000, keys(0, np.array([0])))[::2])
    assert np.array_equal(both[1::2], permute(index, 1000, keys(0, np.array([1])))[1::2])
    shuffled = permute(index, 1000, keys(0, np.array([0])))
    assert abs(np.corrcoef(index, shuffled)[0, 1]) < 0.1  # 3 standard errors of a random order
    assert np.mean(np.diff(shuffled) == 1) < 0.01


def test_permutation_of_small_ranges_reaches_every_order_evenly() -> None:
    orders = permute(np.tile(np.arange(3), 6000), 3, np.repeat(keys(1, np.arange(6000)), 3)).reshape(-1, 3)
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 850  # 1000 expected, standard deviation 29
    assert counts.max() < 1150


def test_order_is_the_same_on_every_machine() -> None:
    assert permute(np.arange(8), 8, keys(0, np.array([0]))).tolist() == [2, 1, 5, 7, 4, 0, 6, 3]
    assert Batches(Counting(1000), plan(length=10, size=4, seed=5)).starts(np.arange(4)).tolist() == [
        333,
        913,
        163,
        933,
    ]


def plan(length: int = 8, size: int = 6, seed: int = 0, **more: int) -> BatchPlan:
    return BatchPlan(sequence_length=length, batch_size=size, seed=seed, **more)


@pytest.mark.parametrize("tokens", [9, 10, 16, 17, 23, 24, 25, 100, 1001])
@pytest.mark.parametrize("size", [1, 6, 64])
def test_every_window_is_visited_once_an_epoch(tokens: int, size: int) -> None:
    batches = Batches(Counting(tokens), plan(size=size))
    windows = batches.windows_per_epoch
    steps = -(-3 * windows // size)
    firsts = np.concatenate([batches.batch(step).inputs[:, 0] for step in range(steps)])
    for epoch in range(3):
        starts = np.sort(firsts[epoch * windows : (epoch + 1) * windows])
        assert np.array_equal(starts, starts[0] + 8 * np.arange(windows))
        assert starts[-1] + 8 <= tokens - 1
    assert windows * 8 > tokens - 1 - 2 * 8
    assert batches.epochs(steps) == steps * size / windows


def test_epochs_differ_in_order_and_phase_and_leave_nothing_out() -> None:
    batches = Batches(Counting(100), plan())
    starts = batches.starts(np.arange(200 * batches.windows_per_epoch)).reshape(200, -1)
    assert len({int(epoch.min()) for epoch in starts}) > 8
    assert len({tuple(np.argsort(epoch)) for epoch in starts}) > 150
    seen = np.unique(starts.reshape(-1, 1) + np.arange(8))
    assert np.array_equal(seen, np.arange(99))


def test_targets_are_the_next_tokens_and_steps_stand_alone() -> None:
    first, second = (Batches(Counting(500), plan(seed=3)) for _ in range(2))
    in_order = [first.batch(step) for step in range(40)]
    for step in (39, 0, 17):
        again = second.batch(step)
        assert np.array_equal(again.inputs, in_order[step].inputs)
        assert np.array_equal(again.targets, again.inputs + 1)
        assert again.inputs.dtype == again.targets.dtype == np.int64
        assert again.inputs.flags.c_contiguous
        assert again.targets.flags.c_contiguous
    other = Batches(Counting(500), plan(seed=4)).batch(0)
    assert not np.array_equal(other.inputs, in_order[0].inputs)


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (3, 1), (12, 1), (1, 4), (2, 3), (4, 3)])
def test_ranks_and_parts_split_one_and_the_same_batch(world: int, parts: int) -> None:
    corpus = Corpus.from_documents(DOCUMENTS, ByteTokenizer())
    whole = Batches(corpus, plan(size=12, reset_at_documents=True))
    for step in range(5):
        pieces = [
            Batches(corpus, plan(size=12, rank=rank, world=world, reset_at_documents=True)).batch(step, part, parts)
            for rank in range(world)
            for part in range(parts)
        ]
        expected = whole.batch(step)
        assert np.array_equal(np.concatenate([piece.inputs for piece in pieces]), expected.inputs)
        assert np.array_equal(np.concatenate([piece.targets for piece in pieces]), expected.targets)
        ends = np.cumsum([0, *(piece.inputs.size for piece in pieces)])
        joined = [piece.cu_seqlens[:-1] + end for piece, end in zip(pieces, ends, strict=False)]
        assert np.array_equal(np.concatenate([*joined, ends[-1:]]), expected.cu_seqlens)


def test_boundaries_are_rows_and_documents() -> None:
    batches = Batches(Corpus.from_documents(DOCUMENTS, ByteTokenizer()), plan(length=16, reset_at_documents=True))
    inside = 0
    for step in range(10):
        batch = batches.batch(step)
        flat = batch.inputs.reshape(-1)
        after_separator = [place for place in range(1, flat.size) if flat[place - 1] == 256]
        expected = sorted({*range(0, flat.size + 1, 16), *after_separator})
        assert batch.cu_seqlens is not None
        assert batch.cu_seqlens.dtype == np.int64
        assert batch.cu_seqlens.tolist() == expected
        inside += len(expected) - 7
    assert inside > 0


def test_no_boundaries_without_need() -> None:
    many = Corpus.from_documents(DOCUMENTS, ByteTokenizer())
    assert Batches(many, plan()).batch(0).cu_seqlens is None
    one = Corpus.from_text("".join(DOCUMENTS), ByteTokenizer())
    assert Batches(one, plan(reset_at_documents=True)).batch(0).cu_seqlens is None
    chars = Corpus.from_documents(DOCUMENTS, CharTokenizer("a"))
    boundaries = Batches(chars, plan(length=200, size=1, reset_at_documents=True)).batch(0).cu_seqlens
    assert boundaries is not None
    assert len(boundaries) > 2  # documents are known without separators too


def test_large_numbers_stay_exact() -> None:
    batches = Batches(Counting(3 * 10**12), plan(length=2048, size=4))
    step = 10**9
    inputs = batches.batch(step).inputs
    assert inputs.shape == (4, 2048)
    assert len(np.unique(inputs[:, 0] % 2048)) == 1  # one phase, and whole windows apart


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"corpus shorter than one sequence: counting has 8 tokens, .* 8 needs 9"):
        Batches(Counting(8), plan())
    assert Batches(Counting(9), plan(size=1)).batch(5).inputs.tolist() == [list(range(8))]
    for wrong, message in (
        ({"length": 0}, "sequence_length must be at least 1"),
        ({"size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must lie"),
        ({"world": 4}, "batch_size 6 does not divide by world 4"),
        ({"rank": 1}, "rank must lie in"),
    ):
        with pytest.raises(UserError, match=message):
            plan(**wrong)
    batches = Batches(Counting(100), plan())
    with pytest.raises(UserError, match="6 sequences do not divide into 4"):
        batches.batch(0, 0, 4)
    for step, part in ((-1, 0), (0, 2), (0, -1)):
        with pytest.raises(IndexError):
            batches.batch(step, part, 2)
