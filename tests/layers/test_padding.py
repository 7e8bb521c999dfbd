"""Padding wherever it stands: outputs, states and gradients are those of the tokens without it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_mixer_contracts import CONFIGS, WIDTH, both, every, inputs, start, stored, tensors
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.block import token_mixer
from hgrn2.models.backbone import Backbone
from hgrn2.models.config import ModelConfig

SPARSE = torch.Generator().manual_seed(3)
MASKS = {
    "left": torch.arange(37) >= torch.tensor([[0], [11], [36]]),
    "right": torch.arange(37) < torch.tensor([[37], [11], [1]]),
    "anywhere": torch.rand(3, 37, generator=SPARSE) < 0.5,
    "a row of padding": (torch.arange(37) >= 0) & torch.tensor([[True], [False], [True]]),
    "none": torch.ones(3, 37, dtype=torch.bool),
}


@pytest.fixture
def mixer(name: str, randomised: Callable) -> Any:
    return randomised(token_mixer(WIDTH, CONFIGS[name]))


@every
@pytest.mark.parametrize("where", MASKS)
@pytest.mark.parametrize("begun", [False, True], ids=["from zero", "from a state"])
def test_padded_rows_are_the_rows_alone(name: str, where: str, begun: bool, mixer: Any, same: Callable) -> None:
    padding_mask, (x, lower_bound) = MASKS[where], inputs(name, batch=3)
    begin = start(mixer, 3) if begun else None
    y, final = mixer(x, lower_bound, begin, padding_mask=padding_mask)
    for row, mask in enumerate(padding_mask):
        own = start(mixer, 3).select([row]) if begun else None
        if not mask.any():
            alone = own or mixer.zeros(1, None, torch.float64)
        else:
            expected, alone = mixer(x[row : row + 1, mask], lower_bound, own)
            same(y[row : row + 1, mask], expected)
        both(final.select([row]), alone, same)


@every
@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_are_those_of_the_rows_alone(name: str, batch: int, mixer: Any, same: Callable) -> None:
    padding_mask, (x, lower_bound) = MASKS["anywhere"][:batch], inputs(name, batch=batch)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    begin = start(mixer, batch).map(lambda s: s.requires_grad_())
    leaves = [x.requires_grad_(), *mixer.parameters(), *stored(begin)]
    leaves += [] if lower_bound is None else [lower_bound.requires_grad_()]

    def loss(y: Tensor, w: Tensor, final: Any) -> Tensor:
        return (y * w).sum() + sum((s.abs() ** 2).sum() for s in tensors(final))  # type: ignore[return-value]

    y, final = mixer(x, lower_bound, begin, padding_mask=padding_mask)
    found = torch.autograd.grad(loss(y[padding_mask], weights[padding_mask], final), leaves)
    total = torch.zeros((), dtype=torch.float64)
    for row, mask in enumerate(padding_mask):
        y, final = mixer(x[row : row + 1, mask], lower_bound, begin.select([row]))
        total = total + loss(y[0], weights[row, mask], final)
    for mine, theirs in zip(found, torch.autograd.grad(total, leaves), strict=True):
        same(mine, theirs, 3000)
    assert not found[0][~padding_mask].any()


@every
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_one_token_at_a_time(name: str, grad: bool, mixer: Any, same: Callable) -> None:
    """Rows that wait while others go on, in the step operators and in scans of one token; nothing moves by a bit."""
    padding_mask, (x, lower_bound) = MASKS["anywhere"], inputs(name, batch=3)
    with torch.set_grad_enabled(grad):
        expected, final = mixer(x, lower_bound, start(mixer, 3), padding_mask=padding_mask)
        state, outputs = start(mixer, 3), []
        for t in range(x.shape[1]):
            y, after = mixer(x[:, t : t + 1], lower_bound, state, padding_mask=padding_mask[:, t : t + 1])
            waiting = (~padding_mask[:, t]).nonzero().flatten()
            for mine, before in zip(tensors(after.select(waiting)), tensors(state.select(waiting)), strict=True):
                assert torch.equal(mine, before)
            outputs.append(y)
            state = after
    same(torch.cat(outputs, 1)[padding_mask], expected[padding_mask])
    both(state, final, same)


@every
def test_steps_in_place_leave_waiting_rows_alone(name: str, mixer: Any) -> None:
    x, lower_bound = inputs(name, batch=3)
    wait = torch.tensor([[True], [False], [True]])
    with torch.no_grad():
        _, state = mixer(x[:, :1], lower_bound, start(mixer, 3), padding_mask=wait, inplace=True)
    for row, moved in enumerate(wait.flatten().tolist()):
        pairs = zip(tensors(state.select([row])), tensors(start(mixer, 3).select([row])), strict=True)
        assert all(torch.equal(mine, before) != moved for mine, before in pairs if before.dtype != torch.int64)


@every
def test_padding_inside_packed_documents(name: str, mixer: Any, same: Callable) -> None:
    padding_mask, (x, lower_bound) = MASKS["anywhere"][:1], inputs(name, batch=1)
    ends = [0, 9, 9, 10, 12, 30, 37]
    begin = start(mixer, len(ends) - 1)
    y, final = mixer(x, lower_bound, begin, cu_seqlens=torch.tensor(ends), padding_mask=padding_mask)
    short = [int(padding_mask[0, :end].sum()) for end in ends]
    expected, states = mixer(x[:, padding_mask[0]], lower_bound, begin, cu_seqlens=torch.tensor(short))
    same(y[:, padding_mask[0]], expected)
    both(final, states, same)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stands_at_padding_cannot_matter(name: str, dtype: torch.dtype, mixer: Any) -> None:
    """Not by a bit, in the precisions of training too; the mask costs no state its exactness."""
    padding_mask, (x, lower_bound) = MASKS["left"], inputs(name, batch=3)
    mixer, x = mixer.to(dtype), x.to(dtype)
    other = torch.where(padding_mask.unsqueeze(-1), x, 50 * torch.randn(x.shape, dtype=dtype))
    one, two = (
        mixer(given, None if lower_bound is None else lower_bound.float(), padding_mask=padding_mask)
        for given in (x, other)
    )
    assert torch.equal(one[0][padding_mask], two[0][padding_mask])
    assert all(torch.equal(a, b) for a, b in zip(tensors(one[1]), tensors(two[1]), strict=True))


def test_a_mask_of_another_shape_or_kind_is_refused() -> None:
    backbone = Backbone(ModelConfig(vocab_size=5, width=16, layers=1, glu_width=16, mixer=CONFIGS["hgru2"]))
    x = torch.zeros(2, 5, 16)
    for wrong in (torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 5)):
        with pytest.raises(UserError, match=r"padding_mask must be \[2, 5\] bool"):
            backbone(x, padding_mask=wrong)


@every
def test_the_earlier_keyword_of_the_mask(name: str, mixer: Any) -> None:
    padding_mask, (x, lower_bound) = MASKS["left"], inputs(name, batch=3)
    if not name.startswith(("hgru", "gla", "attention")):
        pytest.skip("was never released with it")
    earlier = "keep"
    assert torch.equal(
        mixer(x, lower_bound, **{earlier: padding_mask})[0], mixer(x, lower_bound, padding_mask=padding_mask)[0]
    )
