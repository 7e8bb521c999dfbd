"""Initial weights: the statistics that each kind states, and models that are born on the meta device."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import config_of
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig, SequenceConfig
from hgrn2.models.init import initialise
from hgrn2.models.language import LanguageModel
from hgrn2.models.sequence import SequenceClassifier

WIDTH, HIDDEN, LAYERS = 128, 160, 3


def built(mixer: MixerConfig | None = None, **init: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        ModelConfig(
            vocab_size=200,
            width=WIDTH,
            layers=LAYERS,
            glu_width=HIDDEN,
            glu_bias=True,
            norm="layer",
            mixer=mixer or MixerConfig(head_size=32, bias=True, norm="layer"),
            init=InitConfig(**init),
        )
    )


def is_normal(x: Tensor, std: float) -> bool:
    """Mean and spread within five standard errors, and the share beyond two sigmas as it must be."""
    x, count = x.detach(), x.numel()
    beyond = float((x.abs() > 2 * std).float().mean())
    return (
        abs(float(x.mean())) < 5 * std / math.sqrt(count)
        and abs(float(x.std()) / std - 1) < 5 / math.sqrt(2 * count)
        and abs(beyond - 0.0455) < 5 * math.sqrt(0.0455 / count)
    )


def is_uniform(x: Tensor, edge: float) -> bool:
    """Inside the edge, nearly reaching it, with the spread of a uniform distribution."""
    x = x.detach()
    top = float(x.abs().max())
    spread = float(x.std()) * math.sqrt(3) / edge
    return 0.98 * edge < top <= edge * (1 + 1e-6) and abs(spread - 1) < 5 / math.sqrt(x.numel())


def readers(model: LanguageModel) -> list[Tensor]:
    """Matrices that do not write to the residual stream."""
    blocks = [weight for b in model.backbone.blocks for weight in (b.mixer.in_proj.weight, b.glu.in_proj.weight)]
    return [model.embedding.weight, model.head.weight, *blocks]


def writers(model: LanguageModel) -> list[Tensor]:
    return [weight for b in model.backbone.blocks for weight in (b.mixer.out_proj.weight, b.glu.out_proj.weight)]


@pytest.mark.parametrize("std", [0.02, 0.006])
def test_normal(std: float) -> None:
    model = built(kind="normal", std=std)
    assert all(is_normal(weight, std) for weight in readers(model) + writers(model))


def test_scaled_normal_divides_the_writers_alone() -> None:
    model = built(kind="scaled_normal", std=0.05)
    assert all(is_normal(weight, 0.05) for weight in readers(model))
    assert all(is_normal(weight, 0.05 / math.sqrt(2 * LAYERS)) for weight in writers(model))


@pytest.mark.parametrize("mixer", ["hgru2", "hgru1"])
def test_biases_norms_and_lower_bounds(mixer: Any) -> None:
    model = built(MixerConfig(kind=mixer, head_size=32, bias=True, norm="layer"))
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            assert (parameter == 0).all(), key
        elif "norm" in key:
            assert (parameter == 1).all(), key
    assert (model.backbone.lower_bounds == 1).all()
    start = [0.0 if lower_bound is None else lower_bound for lower_bound in model.backbone.layer_lower_bounds()]
    for layer, lower_bound in enumerate(start):
        assert torch.allclose(torch.as_tensor(lower_bound), torch.tensor(layer / LAYERS))


def test_phases_of_hgrn1() -> None:
    model = built(MixerConfig(kind="hgru1"))
    for block in model.backbone.blocks:
        stated = [10000 ** (-2 * j / WIDTH) for j in range(WIDTH)]
        assert torch.allclose(block.mixer.theta, torch.tensor(stated), rtol=1e-6, atol=0)
        assert block.mixer.theta[0] == 1


@pytest.mark.parametrize("taps", [2, 4])
def test_convolutions_are_uniform_within_their_fan_in(taps: int) -> None:
    model = built(MixerConfig(head_size=32, conv_width=taps))
    assert all(is_uniform(block.mixer.conv, taps**-0.5) for block in model.backbone.blocks)


@pytest.mark.parametrize("kind", ["normal", "scaled_normal"])
def test_born_on_meta_equals_born_on_the_device(name: str, kind: Any, tokens: Callable) -> None:
    """Empty memory is filled with NaN first: a parameter that `initialise` forgets would keep it."""
    config = config_of(name, init=InitConfig(kind=kind))
    direct = LanguageModel(config)
    torch.manual_seed(3)
    initialise(direct, config.init)
    with torch.device("meta"):
        late = LanguageModel(config)
    assert all(p.is_meta for p in late.parameters())
    late.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in late.parameters():
            parameter.fill_(math.nan)
    torch.manual_seed(3)
    initialise(late, config.init)
    assert list(late.state_dict()) == list(direct.state_dict())
    for key, tensor in direct.state_dict().items():
        assert torch.equal(late.state_dict()[key], tensor), key
    with torch.no_grad():
        assert torch.equal(late(tokens())[0], direct(tokens())[0])
    with_lower_bound = late.config.with_lower_bound
    for layer, lower_bound in enumerate(late.backbone.layer_lower_bounds()):
        assert lower_bound is None or torch.allclose(
            lower_bound, torch.tensor(with_lower_bound.index(layer) / len(with_lower_bound))
        )


def test_construction_follows_the_global_seed() -> None:
    first, second = built(), built()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.manual_seed(1)
    other = LanguageModel(first.config)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("kind", ["hgru2", "hgru1", "hgru1_real"])
@pytest.mark.parametrize("separate", [False, True])
def test_every_scan_starts_with_the_memory_it_is_told(kind: Any, separate: bool) -> None:
    """1/(1-f) of an input that says nothing: from 4 to 100 tokens over each head (of HGRN1 over the layer)."""
    mixer = MixerConfig(kind=kind, head_size=8, bias=True, direction="bidirectional", separate_scans=separate)
    config = SequenceConfig(
        classes=2, vocab_size=9, width=16, layers=2, glu_width=16, mixer=mixer, init=InitConfig(memory=100)
    )
    span = 16 if kind != "hgru2" else 8
    wanted = torch.logspace(math.log10(4), 2, span).repeat(16 // span)
    for block in SequenceClassifier(config).backbone.blocks:
        unit: Any = block.mixer
        for projection in (unit.unit.in_proj, *unit.more):
            forget = projection.bias[-16:].double().sigmoid()
            assert (1 / (1 - forget)).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
        assert len(unit.more) == separate


def test_memory_needs_biases() -> None:
    with pytest.raises(UserError, match=r"init\.memory is the bias of the forget gates: mixer\.bias must be true"):
        ModelConfig(
            vocab_size=9, width=16, layers=1, glu_width=16, mixer=MixerConfig(head_size=8), init=InitConfig(memory=10)
        )
    with pytest.raises(UserError, match=r"init memory is 3(\.0)?; use 0, or 4 to 1e6"):
        InitConfig(memory=3)
