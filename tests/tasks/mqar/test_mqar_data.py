"""The sequences are what they claim to be: held to a plain loop over every token, and to the published odds."""

from typing import Any

import numpy as np
import pytest

from hgrn2.errors import UserError
from hgrn2.tasks.mqar.config import MQARData, Segment, segment
from hgrn2.tasks.mqar.data import Examples, Sequences, distinct, gaps, sequences

PLAIN = MQARData(train=("32x4x64",), test=("32x4x64",))


def made(text: str, count: int = 50, vocab: int = 64, data: MQARData = PLAIN, seed: int = 0) -> Sequences:
    return sequences(np.random.default_rng(seed), segment(text), count, vocab, data)


@pytest.mark.parametrize(("text", "vocab"), [("32x4x1", 64), ("64x16x1", 40), ("8x2x1", 9), ("256x64x1", 8192)])
@pytest.mark.parametrize("fill", ["random", "zero"])
def test_every_query_is_answered_by_the_pair_before_it(text: str, vocab: int, fill: str) -> None:
    wanted = segment(text)
    data = MQARData(fill=fill)  # pyright: ignore[reportArgumentType]
    found = made(text, 30, vocab, data)
    assert found.tokens.shape == (30, wanted.length)
    assert found.positions.shape == found.answers.shape == (30, wanted.pairs)
    assert all(array.dtype == np.int64 for array in found)
    for row, places, answers in zip(*found, strict=True):
        bound = {}
        for at in range(0, 2 * wanted.pairs, 2):
            key, value = int(row[at]), int(row[at + 1])
            assert 1 <= key < vocab // 2 <= value < vocab
            assert key not in bound
            bound[key] = value
        assert len(set(bound.values())) == wanted.pairs
        asked = {}
        for place, answer in zip(places, answers, strict=True):
            assert 2 * wanted.pairs <= place < wanted.length
            assert place % 2 == 0
            assert bound[int(row[place])] == answer
            asked[int(row[place])] = int(place)
        assert set(asked) == set(bound)
        rest = [int(row[at]) for at in range(2 * wanted.pairs, wanted.length) if at not in asked.values()]
        assert all(0 <= token < vocab for token in rest)
        assert fill == "random" or not any(rest)


def test_the_answer_never_stands_behind_its_query() -> None:
    """With fillers of 0 the values are found in the pairs only: nothing but memory gives the answer."""
    found = made("32x4x1", data=MQARData(fill="zero"))
    assert found.tokens[:, 8:].max() < 32


@pytest.mark.parametrize("power", [0.01, 1.0, 2.5])
def test_places_are_drawn_as_one_after_the_other_would_be(power: float) -> None:
    """Against NumPy's own choice without replacement, which the published generator calls row by row."""
    wanted, rows = Segment(length=14, pairs=2, examples=1), 20_000
    weights = np.arange(1, wanted.gaps + 1) ** (power - 1.0)
    rng = np.random.default_rng(5)
    exact = np.array([rng.choice(wanted.gaps, 2, replace=False, p=weights / weights.sum()) for _ in range(rows)])
    found = gaps(np.random.default_rng(6), rows, wanted, power)

    def table(drawn: np.ndarray) -> np.ndarray:
        return np.bincount(drawn[:, 0] * wanted.gaps + drawn[:, 1], minlength=wanted.gaps**2) / rows

    mine, theirs = table(found), table(exact)
    error = np.sqrt(2 * np.maximum(theirs, 1 / rows) / rows)  # of the difference of two such counts
    assert (np.abs(mine - theirs) < 5 * error).all()
    assert mine.reshape(wanted.gaps, -1).trace() == 0


def test_near_places_come_first_under_the_published_power() -> None:
    near = gaps(np.random.default_rng(0), 4000, Segment(64, 4, 1), 0.01)[:, 0]
    assert np.bincount(near)[0] > 2.5 * np.bincount(near)[3]


def test_distinct_numbers_are_even_in_every_place() -> None:
    rows, choices, count = 30_000, 7, 3
    drawn = distinct(np.random.default_rng(1), rows, count, choices)
    assert all(len(set(row)) == count for row in drawn[:500])
    orders = np.bincount(drawn @ np.array([49, 7, 1]), minlength=343)
    seen = orders[orders > 0]
    assert len(seen) == 7 * 6 * 5
    expected = rows / len(seen)
    assert (np.abs(seen - expected) < 5 * expected**0.5).all()
    assert sorted(distinct(np.random.default_rng(2), 1, 7, 7)[0]) == list(range(7))


def test_many_distinct_numbers_are_even_in_every_place() -> None:
    """Rows with a number twice are drawn anew, which must not favour any number, place or pair of neighbours."""
    rows, choices, count = 20_000, 128, 16
    drawn = distinct(np.random.default_rng(3), rows, count, choices)
    assert all(len(set(row)) == count for row in drawn)
    for counted, cells in ((drawn + choices * np.arange(count), choices * count), (drawn, choices)):
        seen = np.bincount(counted.ravel(), minlength=cells)
        expected = rows * count / cells
        assert len(seen) == cells
        assert (np.abs(seen - expected) < 5.5 * expected**0.5).all()
    steps = np.bincount(((drawn[:, 1] - drawn[:, 0]) % choices), minlength=choices)
    assert steps[0] == 0
    assert (np.abs(steps[1:] - rows / (choices - 1)) < 5 * (rows / (choices - 1)) ** 0.5).all()


def test_batches_are_functions_of_seed_and_step() -> None:
    data = MQARData(train=("16x2x40", "32x4x24"), test=("32x4x8",))
    one, again = Examples(data, 64, 8), Examples(data, 64, 8)
    for step in (0, 5, 8, 21):
        for mine, theirs in zip(one.train(step, 3), again.train(step, 3), strict=True):
            assert (mine == theirs).all()
    other = Examples(MQARData(train=data.train, test=data.test, seed=1), 64, 8)
    assert any((one.train(s, 3).tokens.shape != other.train(s, 3).tokens.shape
                or (one.train(s, 3).tokens != other.train(s, 3).tokens).any()) for s in range(3))  # fmt: skip
    assert one.mean_tokens == 8 * (5 * 16 + 3 * 32) // 8


def test_an_epoch_has_every_batch_once_in_a_new_order() -> None:
    data = MQARData(train=("16x2x40", "32x4x24"), test=("32x4x8",))
    examples = Examples(data, 64, 8)
    epochs = [[examples.train(8 * epoch + n, 0).tokens.tobytes() for n in range(8)] for epoch in range(3)]
    assert len(set(epochs[0])) == 8
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1]
    in_order = Examples(MQARData(train=data.train, test=data.test, order="by_segment"), 64, 8)
    lengths = [in_order.train(n, 0).tokens.shape[1] for n in range(8)]
    assert lengths == [16] * 5 + [32] * 3


def test_nothing_that_is_tested_was_trained_on() -> None:
    data = MQARData(train=("32x4x640",), test=("32x4x500", "32x2x100"))
    examples = Examples(data, 64, 64)
    seen = {row.tobytes() for n in range(10) for row in examples.train(n, 0).tokens}
    asked = {row.tobytes() for place in (0, 1) for row in examples.test(place).tokens}
    assert len(seen) == 640
    assert len(asked) == 600
    assert not seen & asked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("64x4", "segment '64x4': write it as LENGTHxPAIRSxEXAMPLES, such as 64x4x100000"),
        ("64,4,10", "segment '64,4,10': write it as LENGTHxPAIRSxEXAMPLES, such as 64x4x100000"),
        ("33x4x10", "segment 33x4x10: the length must be even"),
        ("32x9x10", "segment 32x9x10: 9 pairs and their queries need 36 tokens"),
        ("32x0x10", "segment 32x0x10: pairs must be at least 1"),
        ("32x4x0", "segment 32x4x0: examples must be at least 1"),
    ],
)
def test_segments_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        MQARData(train=(text,))
    assert str(error.value) == said


def test_data_that_cannot_be() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"train": ()}, "data.train is empty"),
        ({"power": 0.0}, "power is 0.0"),
        ({"power": float("nan")}, "power is nan"),
        ({"seed": -1}, "data seed is -1"),
        ({"fill": "noise"}, "fill is 'noise'; choose one of: random, zero"),
    )
    for changes, said in cases:
        with pytest.raises(UserError, match=said.replace(".", r"\.")):
            MQARData(**changes)
