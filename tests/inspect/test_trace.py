"""Outputs and states as sums over tokens are those that the layers compute."""

import math
from typing import Any

import pytest
import torch
from small_models import CONFIGS, VOCABULARY, config_of
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.inspect import Trace, differences, effective_rank, trace
from hgrn2.inspect.states import along
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.mamba import Mamba
from hgrn2.layers.mamba2 import Mamba2
from hgrn2.layers.operators import Operators
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel

TOKENS = 40
GATED = [name for name in CONFIGS if not name.startswith("attention")]
"""Those whose outputs are laid open as sums."""
EXACT = 1e-10


def made(name: str, **changes: Any) -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(config_of(name, **changes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)  # gates, bounds and phases away from where they start
    return model


def text(tokens: int = TOKENS) -> Tensor:
    return torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(5))


def outputs(model: LanguageModel, ids: Tensor) -> dict[int, Tensor]:
    """What every layer's norm is given, [T,...]: the scan's output; of hgru1 [Re h, Im h]. Of Mamba and Mamba-2, whose
    norms come after more or are missing, what their operators return."""
    caught: dict[int, Tensor] = {}
    handles = [
        block.mixer.norm.register_forward_pre_hook(lambda _, given, n=n: caught.__setitem__(n, given[0][0]))
        for n, block in enumerate(model.backbone.blocks)
        if hasattr(block.mixer, "norm")
    ]
    scanned: list[Tensor] = []

    class Recorded(Operators):
        def gated_outer_scan(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
            found = super().gated_outer_scan(*tensors, **options)
            scanned.append(found[0][0].flatten(1))
            return found

        def selective_scan(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
            found = super().selective_scan(*tensors, **options)
            scanned.append(found[0][0])
            return found

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for kind in (Mamba, Mamba2):
            patch.setattr(kind, "operators", Recorded())
        model(ids[None])
    for handle in handles:
        handle.remove()
    return dict(enumerate(scanned)) or caught


@pytest.mark.parametrize("name", GATED)
def test_contributions_sum_to_the_output_before_the_norm(name: str) -> None:
    model, ids = made(name), text()
    found, real = trace(model, ids), outputs(model, ids)
    assert len(found.layers) + len(found.left_out) == 3
    for layer in found.layers:
        for token in (0, 1, 17, TOKENS - 1):
            parts = layer.contributions(token)
            assert parts.shape[0] == token + 1
            total = parts.sum(0).flatten()
            total = torch.cat((total.real, total.imag)) if total.is_complex() else total
            want = real[layer.layer][token]
            assert want.abs().max() > 1e-3
            assert float((total - want).abs().max()) < EXACT * max(1.0, float(want.abs().max()))
            shares = layer.shares(token)
            assert float(shares.sum()) == pytest.approx(1, abs=1e-9)
            assert float(layer.reach(token).sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", GATED)
def test_states_on_the_way_and_at_the_end(name: str) -> None:
    model, ids = made(name), text()
    found = trace(model, ids)
    for layer in found.layers:
        for after, state in zip((3, 3, 20, TOKENS), layer.states((3, 3, 20, TOKENS)), strict=True):
            with torch.no_grad():
                _, real = model(ids[None, :after])
            want = real.layers[layer.layer].recurrent[0]
            assert float((state.reshape(want.shape) - want).abs().max()) < EXACT
        with pytest.raises(UserError, match="must rise"):
            list(layer.states((5, 4)))


def test_float32_is_close() -> None:
    double = trace(made("hgru2"), text())
    single = trace(made("hgru2").float(), text())
    for exact, layer in zip(double.layers, single.layers, strict=True):
        assert layer.contributions(30).dtype == torch.float32
        torch.testing.assert_close(layer.contributions(30).double(), exact.contributions(30), rtol=1e-3, atol=1e-5)


def test_what_gates_say() -> None:
    """With constant gates every number has a closed form."""
    mixer = MixerConfig(head_size=4, bias=True)
    model = LanguageModel(ModelConfig(vocab_size=5, width=8, layers=2, glu_width=8, mixer=mixer)).double()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.mixer.in_proj.weight.zero_()
            block.mixer.in_proj.bias.zero_()  # every forget logit is 0: f = γ + (1-γ)/2, and every value is 0
    found = trace(model, torch.zeros(6, dtype=torch.int64))
    assert [layer.layer for layer in found.layers] == [0, 1]
    for layer, forget, lower_bound in zip(found.layers, (0.5, 0.75), (0.0, 0.5), strict=True):
        scale = torch.full((2, 4), -1 / math.log(forget), dtype=torch.float64)
        torch.testing.assert_close(layer.time_scales(), scale)
        torch.testing.assert_close(layer.memory_along(), scale[:, 0].expand(6, 2))
        torch.testing.assert_close(layer.held(4), torch.full((2,), forget**2, dtype=torch.float64))
        promised = 0.0 if lower_bound == 0 else -1 / math.log(lower_bound)
        torch.testing.assert_close(layer.guaranteed(), torch.full((2, 4), promised, dtype=torch.float64))
        assert layer.shares(5).tolist() == [0.0] * 6  # the output is zero
        norm, rank = along(layer, [1, 6])
        assert rank is not None
        assert norm.tolist() == rank.tolist() == [[0.0, 0.0]] * 2


def test_logprobs_are_those_of_the_model() -> None:
    model, ids = made("hybrid"), text()
    found = trace(model, ids)
    loss = model.loss(ids[None, :-1], ids[None, 1:]).item()
    assert float(-found.logprobs.mean()) == pytest.approx(loss, rel=1e-9)
    assert found.left_out == {1: "attention"}


def test_effective_rank() -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    for values, rank in (([1, 0, 0, 0, 0, 0], 1), ([2, 2, 2, 0, 0, 0], 3), ([0] * 6, 0), ([1] * 6, 6)):
        matrix = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right
        assert float(effective_rank(matrix)) == pytest.approx(rank, abs=1e-6)
    between = effective_rank(torch.diag(torch.tensor([1.0, 0.5])))
    assert float(between) == pytest.approx(math.exp(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)))


@pytest.mark.parametrize("name", ["hgru2", "hgru1", "hgru1_real", "gla", "hybrid"])
def test_differences_of_states(name: str) -> None:
    model = made(name)

    def state(ids: Tensor) -> Trace:
        return trace(model, ids)

    a, b = state(text(30)), state(text(40))
    gated = [layer.layer for layer in a.layers]
    same, other = differences(a.state, a.state), differences(a.state, b.state)
    assert [one.layer for one in same] == [one.layer for one in other] == gated
    for one in same:
        assert one.distance.tolist() == [0] * len(one.distance)
        torch.testing.assert_close(one.cosine, torch.ones_like(one.cosine))
    for one in other:
        assert (one.distance > 0).all()
        x, y = (found.state.layers[one.layer].recurrent[0] for found in (a, b))
        if x.dim() == 3:
            want = torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1), dim=-1)
            torch.testing.assert_close(one.cosine, want)
    empty = differences(model.zeros(1), model.zeros(1))
    assert all(one.distance.tolist() == [0] * len(one.distance) for one in empty)
    with pytest.raises(UserError, match="different models"):
        differences(a.state, made(name, layers=2).zeros(1))
    with pytest.raises(UserError, match="one sequence each"):
        differences(model.zeros(2), model.zeros(2))


def test_refusals() -> None:
    model = made("hgru2")
    with pytest.raises(UserError, match="no text"):
        trace(model, [])
    with pytest.raises(UserError, match="outside the vocabulary"):
        trace(model, [VOCABULARY])
    with pytest.raises(UserError, match="no token 40"):
        trace(model, text()).layers[0].contributions(TOKENS)
    attention = made("hgru2", mixer=MixerConfig(kind="attention", head_size=8), lower_bound="none")
    with pytest.raises(UserError, match=r"no layer of this model is a sum faded by forget gates.*attention"):
        trace(attention, text())
