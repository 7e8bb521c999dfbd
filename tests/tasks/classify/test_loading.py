"""A batch is the same whether its examples lie on the device or travel to it."""

import numpy as np
import pytest
import torch
from drawn import drawn_images, drawn_sequences

from hgrn2.data.class_batches import ClassPlan
from hgrn2.data.classes import Examples
from hgrn2.errors import UserError
from hgrn2.tasks.classify.loading import Loader

CPU = torch.device("cpu")
EXAMPLES = {
    "sequences": drawn_sequences(30),
    "pairs": drawn_sequences(30, pair=True),
    "images": drawn_images(30),
}  # fmt: skip


@pytest.mark.parametrize("examples", EXAMPLES.values(), ids=EXAMPLES.keys())
@pytest.mark.parametrize("longest", [0, 16])
def test_resident_and_travelling_examples_are_alike(examples: Examples, longest: int) -> None:
    plan = ClassPlan(batch_size=5, max_length=longest, multiple=8)
    near, far = Loader(examples, plan, CPU), Loader(examples, plan, CPU, limit=0)
    assert near.resident
    assert not far.resident
    for rows in (np.array([0]), np.array([7, 3, 29, 3]), np.arange(30)):
        for one, other in zip(near.batch(rows), far.batch(rows), strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert one.dtype == other.dtype
                assert torch.equal(one, other)


def test_rows_hold_their_texts_and_nothing_else() -> None:
    examples = EXAMPLES["sequences"]
    rows = np.array([4, 11, 2])
    found = Loader(examples, ClassPlan(batch_size=3, multiple=8), CPU).batch(rows)
    assert found.padding_mask is not None
    assert found.inputs.shape[1] % 8 == 0
    for place, row in enumerate(rows):
        text = examples.first(row)
        assert found.inputs[place][found.padding_mask[place]].tolist() == text.tolist()
        assert int(found.padding_mask[place].sum()) == len(text)
        assert not found.inputs[place][~found.padding_mask[place]].any()


def test_token_ids_above_a_signed_16_bit_number_survive() -> None:
    tokens = np.array([40_000, 65_535, 1], dtype=np.uint16)
    examples = Examples(a=tokens, labels=np.array([0, 1]), a_offsets=np.array([0, 2, 3]))
    found = Loader(examples, ClassPlan(batch_size=2, multiple=1), CPU).batch(np.array([0, 1]))
    assert found.inputs.tolist() == [[40_000, 65_535], [1, 0]]


@pytest.mark.parametrize("limit", [None, 0])
def test_a_sequence_that_is_too_long_can_stop(limit: int | None) -> None:
    plan = ClassPlan(batch_size=5, max_length=10, too_long="stop")
    with pytest.raises(UserError, match=r"example \d+ has \d+ tokens, the model has 10 positions"):
        Loader(EXAMPLES["sequences"], plan, CPU, limit=limit).batch(np.arange(30))
