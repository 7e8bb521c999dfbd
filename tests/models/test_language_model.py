"""The whole model: its equations, every way of cutting tokens, live bounds and refusals."""

import doctest
import importlib
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from small_models import VOCABULARY, config_of
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from hgrn2.errors import UserError
from hgrn2.layers.state import ModelState
from hgrn2.models.count import state_bytes
from hgrn2.models.language import LanguageModel


def lower_bounds(model: LanguageModel) -> list[Tensor | None]:
    """Bounds of all layers from the formulas of the two published forms."""
    raw = model.backbone.lower_bounds
    if raw is None:
        return [None] * model.config.layers
    shares = raw.exp() / raw.exp().sum(0)
    sums = torch.tril(torch.ones(len(raw), len(raw), dtype=raw.dtype)) @ shares
    sums = sums - (shares[0] if model.config.lower_bound == "inclusive" else shares)
    found = dict(zip(model.config.with_lower_bound, sums, strict=True))
    return [found.get(layer) for layer in range(model.config.layers)]


def normed(x: Tensor, norm: nn.Module, kind: str, eps: float) -> Tensor:
    if kind == "layer":
        return layer_norm(x, x.shape[-1:], eps=eps) * norm.weight + norm.bias
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (1 if norm.weight is None else norm.weight)


def stated(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits by the equations of the stack; the mixers, tested by themselves, are called with bounds by formula."""
    config = model.config
    x = model.embedding.weight[tokens] * (config.width**0.5 if config.scale_embeddings else 1)
    for block, lower_bound in zip(model.backbone.blocks, lower_bounds(model), strict=True):
        x = x + block.mixer(normed(x, block.mixer_norm, config.norm, config.norm_eps), lower_bound)[0]
        if block.glu is None:  # mamba and mamba2
            continue
        hidden = block.glu.in_proj(normed(x, block.glu_norm, config.norm, config.norm_eps))
        gate, value = hidden[..., : config.glu_width], hidden[..., config.glu_width :]
        gate = {"none": lambda y: y, "silu": lambda y: y * y.sigmoid(), "gelu": gelu}[config.glu_activation](gate)
        x = x + block.glu.out_proj(gate * value)
    x = normed(x, model.backbone.norm, config.norm, config.norm_eps)
    return x @ (model.embedding.weight if config.tie_embeddings else model.head.weight).T


@torch.no_grad()
def test_equals_its_equations(name: str, make: Callable, tokens: Callable, same: Callable) -> None:
    model = make(name, norm_eps=0.02).double()
    same(model(tokens())[0], stated(model, tokens()))


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_step_by_step_is_the_whole(name: str, grad: bool, make: Callable, tokens: Callable, same: Callable) -> None:
    model, ids = make(name).double(), tokens()
    expected, final = model(ids)
    outputs, state = [], model.zeros(2)
    with torch.set_grad_enabled(grad):
        for token in ids.split(1, 1):
            logits, state = model(token, state)
            outputs.append(logits)
    same(torch.cat(outputs, 1), expected)
    same(state, final)


@pytest.mark.parametrize("cuts", [(1, 28), (2, 2, 25), (13, 16), (28, 1)])
@torch.no_grad()
def test_split_anywhere_is_the_whole(
    name: str, cuts: tuple[int, ...], make: Callable, tokens: Callable, same: Callable
) -> None:
    model, ids = make(name).double(), tokens()
    expected, final = model(ids)
    outputs, state = [], None
    for part in ids.split(cuts, 1):
        logits, state = model(part, state)
        outputs.append(logits)
    same(torch.cat(outputs, 1), expected)
    same(state, final)


@torch.no_grad()
def test_packed_documents_are_separate_ones(name: str, make: Callable, tokens: Callable, same: Callable) -> None:
    """Outputs and states, documents of no and one token among them; and a second pass that goes on from the states."""
    model, ids = make(name).double(), tokens(1)
    ends = [0, 5, 6, 6, 8, 29]
    packed, states = model(ids, cu_seqlens=torch.tensor(ends))
    again, _ = model(ids, states, cu_seqlens=torch.tensor(ends))
    assert states.batch == 5
    for n, (a, b) in enumerate(pairwise(ends)):
        if a == b:
            same(states.select([n]), model.zeros(1))
            continue
        alone, state = model(ids[:, a:b])
        same(packed[:, a:b], alone)
        same(states.select([n]), state)
        same(again[:, a:b], model(ids[:, a:b], state)[0])


def test_packed_gradients_are_the_sum_of_separate_ones(
    name: str, make: Callable, tokens: Callable, same: Callable
) -> None:
    model, ids, targets = make(name).double(), tokens(1), tokens(1, seed=2)
    ends = [0, 5, 6, 29]
    model.loss(ids, targets, cu_seqlens=torch.tensor(ends)).backward()
    packed = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    for a, b in pairwise(ends):
        (model.loss(ids[:, a:b], targets[:, a:b]) * (b - a) / 29).backward()
    for key, parameter in model.named_parameters():
        same(packed[key], parameter.grad, 3000)


@torch.no_grad()
def test_rows_of_a_batch_do_not_touch(name: str, make: Callable, tokens: Callable, same: Callable) -> None:
    model, ids = make(name).double(), tokens(3)
    together, states = model(ids)
    for row in range(3):
        alone, state = model(ids[row : row + 1])
        same(together[row : row + 1], alone)
        same(states.select([row]), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_the_past_does_not_see_the_future_to_the_bit(
    name: str, dtype: torch.dtype, make: Callable, tokens: Callable
) -> None:
    """Longer than a chunk of the scan, so that changes lie inside a chunk and beyond it."""
    model, ids = make(name).to(dtype), tokens(2, 150)
    before = model(ids)[0]
    for at in (1, 40, 64, 100, 149):
        changed = ids.clone()
        changed[:, at:] = (changed[:, at:] + 1) % VOCABULARY
        after = model(changed)[0]
        assert torch.equal(after[:, :at], before[:, :at])
        assert not torch.equal(after[:, at], before[:, at])


@torch.no_grad()
def test_state_is_as_large_after_one_token_as_after_many(name: str, make: Callable, tokens: Callable) -> None:
    model = make(name)
    assert model.zeros(2).nbytes == 2 * state_bytes(model.config)
    for length in (1, 2, 29, 300):
        assert model(tokens(2, length))[1].nbytes == 2 * state_bytes(model.config, tokens=length)
        assert model.config.grows or state_bytes(model.config, tokens=length) == state_bytes(model.config)


@torch.no_grad()
def test_a_forked_state_goes_on_as_the_original(name: str, make: Callable, tokens: Callable, same: Callable) -> None:
    """Select and insert move sequences between batches without touching the others."""
    model, ids = make(name).double(), tokens(3)
    whole = model(ids)[0][:, 10:]
    state = model(ids[:, :10])[1]
    forked = model(ids[[2, 0, 0], 10:], state.select([2, 0, 0]))[0]
    same(forked, whole[[2, 0, 0]])
    moved = model.zeros(3).insert([1], state.select([2]))
    same(model(ids[[0, 2, 0], 10:], moved)[0][1], whole[2])


def blocks_of(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """The output of every block."""
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out[0].detach())) for b in model.backbone.blocks]
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_lower_bounds_are_live(name: str, make: Callable, tokens: Callable) -> None:
    """Changing Γ leaves the first layer alone and changes every other; published code has lost them silently."""
    model, ids = make(name), tokens()
    if model.config.lower_bound == "none":
        assert model.backbone.lower_bounds is None
        return
    before = blocks_of(model, ids)
    first, *others = model.config.with_lower_bound
    model.backbone.lower_bounds += torch.tensor([[0.0], [2.0], [-1.0]])[: len(others) + 1]
    after = blocks_of(model, ids)
    assert torch.equal(before[first], after[first])
    for layer in others:
        assert float((before[layer] - after[layer]).abs().max()) > 1e-2


@torch.no_grad()
def test_lower_bounds_hold_memories_longer_in_upper_layers(make: Callable, tokens: Callable) -> None:
    """With all weight on the second row, layers above the first keep their state however the gate is set."""
    model, ids = make("hgru2"), tokens()
    model.backbone.lower_bounds.copy_(torch.tensor([[0.0], [50.0], [0.0]]).expand(3, 16))
    begin = model.zeros(2).map(torch.ones_like)
    for layer, state in enumerate(model(ids, begin)[1].layers):
        assert torch.allclose(state.recurrent, torch.ones_like(state.recurrent), atol=1e-4) == (layer > 0)


def test_every_parameter_learns(name: str, make: Callable, tokens: Callable) -> None:
    """One backward reaches all, every row of Γ among them: the row that no bound sums up acts through the softmax."""
    model = make(name)
    model.loss(tokens(4, 40), tokens(4, 40, seed=2)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert (parameter.grad.abs().amax(-1) > 0).all(), key


def test_a_single_layer_has_a_lower_bound_that_nothing_reads(make: Callable, tokens: Callable) -> None:
    """γ of the first layer is zero by definition: its Γ gets no gradient, and that is the only such parameter."""
    model = make("hgru2", layers=1)
    model.loss(tokens(), tokens(seed=2)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == ["backbone.lower_bounds"]


def test_loss_is_the_mean_over_all_tokens(make: Callable, tokens: Callable, same: Callable) -> None:
    model, ids, targets = make("hgru2").double(), tokens(), tokens(seed=2)
    scores = model(ids)[0].exp()
    chosen = scores.gather(-1, targets[..., None]).squeeze(-1) / scores.sum(-1)
    same(model.loss(ids, targets), -chosen.log().mean())


@torch.no_grad()
def test_dropout_is_absent_in_evaluation(make: Callable, tokens: Callable) -> None:
    model, ids = make("hgru2", dropout=0.3).eval(), tokens()
    assert torch.equal(model(ids)[0], make("hgru2")(ids)[0])


@pytest.mark.parametrize("place", ["embedding", "mixer", "glu"])
@torch.no_grad()
def test_dropout_acts_at_each_of_its_places(place: str, make: Callable, tokens: Callable) -> None:
    """With the other two silenced or skipped, each one alone makes two passes differ."""
    model, ids = make("hgru2", dropout=0.3), tokens()
    model.dropout.p = 0.3 if place == "embedding" else 0.0
    for block in model.backbone.blocks:
        for writer, kept in ((block.mixer.out_proj, place == "mixer"), (block.glu.out_proj, place == "glu")):
            writer.weight.mul_(kept)
    assert not torch.equal(model(ids)[0], model(ids)[0])


def test_no_state_when_none_is_asked_for(name: str, make: Callable, tokens: Callable) -> None:
    model, ids = make(name), tokens()
    logits, state = model(ids, output_state=False)
    assert state is None
    assert torch.equal(logits, model(ids)[0])
    assert isinstance(model(ids)[1], ModelState)


def test_token_ids_outside_the_vocabulary_are_refused(make: Callable) -> None:
    model = make("hgru2")
    for bad in (VOCABULARY, -1):
        with pytest.raises(UserError, match=f"token id {bad} is outside the vocabulary of {VOCABULARY}"):
            model.check_tokens(torch.tensor([[0, bad, 1]]))
    model.check_tokens(torch.tensor([[0, VOCABULARY - 1]]))
    model.check_tokens(torch.empty(1, 0, dtype=torch.long))


def test_a_state_of_another_model_is_refused(make: Callable, tokens: Callable) -> None:
    with pytest.raises(UserError, match="state must be"):
        make("hgru2")(tokens(), make("hgru2", width=32).zeros(2))
    with pytest.raises(UserError, match="state must be"):
        make("hgru2")(tokens(2), make("hgru2").zeros(3))


def test_tied_models_have_one_matrix() -> None:
    tied, untied = (LanguageModel(config_of("hgru2", tie_embeddings=tie)) for tie in (True, False))
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"head.weight"}


@pytest.mark.parametrize("module", ["hgrn2.models.language", "hgrn2.models.presets"])
def test_docstring_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
