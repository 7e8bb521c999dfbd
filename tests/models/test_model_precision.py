"""Precision of whole models: what bfloat16 loses, what stays float32 around it, and float64 throughout."""

from collections.abc import Callable

import torch
from torch import nn

from hgrn2.layers.state import ModelState


def kept(state: ModelState) -> set[torch.dtype]:
    """Precisions of what is summed over a text; keys and values are as they were computed, and counters whole."""
    return {x.dtype for name, x in state.tensors().items() if not name.endswith(("keys_values", "dropped"))}


@torch.no_grad()
def test_bfloat16_stays_near_float32(name: str, make: Callable, tokens: Callable) -> None:
    """Within twice what rounding the weights alone does to the same model; states and bounds stay float32."""
    model, ids = make(name), tokens(4, 60)
    expected = model.double()(ids)[0]
    rounded = model.bfloat16().double()(ids)[0]
    logits, state = model.bfloat16()(ids)
    assert logits.dtype == torch.bfloat16
    assert kept(state) <= {torch.float32, torch.complex64}
    own_loss = float((rounded - expected).square().mean().sqrt())
    assert 0 < float((logits - rounded).square().mean().sqrt()) <= 2 * own_loss
    bounds = model.backbone.layer_lower_bounds()[1:]
    assert all(lower_bound is None or lower_bound.dtype == torch.float32 for lower_bound in bounds)


def test_autocast_keeps_states_and_gradients_in_float32(
    name: str, make: Callable, tokens: Callable, same: Callable
) -> None:
    model, ids, targets = make(name), tokens(4, 40), tokens(4, 40, seed=2)
    expected = model.loss(ids, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(ids, targets)
        _, state = model(ids)
    loss.backward()
    assert loss.dtype == torch.float32
    assert kept(state) <= {torch.float32, torch.complex64}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert abs(float(loss.detach() - expected.detach())) < 0.05


@torch.no_grad()
def test_float64_stays_float64(name: str, make: Callable, tokens: Callable) -> None:
    model = make(name).double()
    logits, state = model(tokens())
    assert logits.dtype == torch.float64
    for made in (state, model.zeros(2), model(tokens(2, 1), state)[1]):
        assert kept(made) <= {torch.float64, torch.complex128}
    bounds = model.backbone.layer_lower_bounds()[1:]
    assert all(lower_bound is None or lower_bound.dtype == torch.float64 for lower_bound in bounds)
    assert model.loss(tokens(), tokens(seed=2)).dtype == torch.float64


@torch.no_grad()
def test_loss_of_a_bfloat16_model_is_float32(make: Callable, tokens: Callable) -> None:
    """To the bit the float32 cross-entropy of its logits; in bfloat16 the mean would keep three digits."""
    model, ids, targets = make("hgru2").bfloat16(), tokens(), tokens(seed=2)
    expected = nn.functional.cross_entropy(model(ids)[0].float().flatten(0, 1), targets.flatten())
    assert torch.equal(model.loss(ids, targets), expected)
