"""Texts of different lengths in one batch, through the whole model: as if each stood alone."""

from collections.abc import Callable

import pytest
import torch

from hgrn2.errors import UserError


@pytest.mark.parametrize("recompute", ["none", "glu", "block"])
@pytest.mark.parametrize("begun", [False, True], ids=["from zero", "from a state"])
def test_rows_are_texts_alone(
    name: str, begun: bool, recompute: str, make: Callable, tokens: Callable, same: Callable
) -> None:
    model = make(name).double()
    model.backbone.set_recompute(recompute)
    ids, padding_mask = tokens(3, 13), torch.rand(3, 13, generator=torch.Generator().manual_seed(2)) < 0.6
    start = model(tokens(3, 4, seed=5))[1] if begun else None
    logits, state = model(ids, start, padding_mask=padding_mask)
    for row, mask in enumerate(padding_mask):
        expected, alone = model(ids[row : row + 1, mask], None if start is None else start.select([row]))
        same(logits[row : row + 1, mask], expected)
        same(state.select([row]), alone)
        same(model.hidden(ids[row : row + 1, mask], trace=(trace := []))[0], trace[-1])
        assert len(trace) == 4


def test_embeddings_in_place_of_ids(name: str, make: Callable, tokens: Callable) -> None:
    model = make(name).double()
    ids = tokens(2, 5)
    assert torch.equal(model.hidden(model.embedding(ids))[0], model.hidden(ids)[0])


def test_a_mask_that_does_not_fit_is_refused(make: Callable, tokens: Callable) -> None:
    with pytest.raises(UserError, match=r"padding_mask must be \[2, 5\] bool, one value per token; got \[2, 4\] bool"):
        make("hgru2")(tokens(2, 5), padding_mask=torch.ones(2, 4, dtype=torch.bool))
