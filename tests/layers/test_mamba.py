"""What is Mamba's own: parts of channels, starting values, settings. tests/models hold both to transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.mamba import Mamba
from hgrn2.layers.mamba2 import MOST_DECAY, Mamba2
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.ops.selective_scan import chunked

WIDTH = 16


def inputs(batch: int = 2, tokens: int = 9) -> Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("part", [2 * 9 * 3 * 7, 1])
def test_a_part_of_the_channels_at_a_time_is_the_whole(
    part: int, randomised: Callable, same: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven of 32 channels, the last part smaller; one by one. Outputs, states and every gradient, and no less is
    kept for the backward where all is."""
    mixer, x = randomised(Mamba(WIDTH, MixerConfig(kind="mamba", state_size=3))), inputs()
    begin = mixer.zeros(2, None, torch.float64).map(lambda s: s + 0.5)
    leaves, results, kept = [x.requires_grad_(), *mixer.parameters()], [], []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel() * (tensor.shape[-1] == 32 * 3 or tensor.shape[-2:] == (32, 3))
        return tensor

    for limit in (chunked.KEPT, 0):
        monkeypatch.setattr(chunked, "KEPT", limit)
        monkeypatch.setattr(chunked, "PART", part)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            y, state = mixer(x, None, begin)
        grads = torch.autograd.grad(y.square().sum() + state.recurrent.sum(), leaves)
        results.append((y, state.recurrent, *grads))
    for mine, theirs in zip(results[1], results[0], strict=True):
        same(mine, theirs, 3000)
    assert kept[0] > 4 * x.shape[1] * 32 * 3
    assert kept[1] <= 32 * 3


def test_padding_and_packing_in_parts(randomised: Callable, same: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = randomised(Mamba(WIDTH, MixerConfig(kind="mamba", state_size=3, conv_width=4))), inputs(1, 20)
    options: dict[str, Any] = {"cu_seqlens": torch.tensor([0, 4, 20]), "padding_mask": torch.arange(20)[None] % 3 > 0}
    expected, final = mixer(x, **options)
    monkeypatch.setattr(chunked, "KEPT", 0)
    monkeypatch.setattr(chunked, "PART", 600)
    y, state = mixer(x, **options)
    same(y, expected)
    same(state.recurrent, final.recurrent)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_starting_values(kind: Any) -> None:
    """Steps lie between the two settings where their input is zero, and decays are those of the papers."""
    mixer = MixerConfig(kind=kind, head_size=2, conv_width=4, step_min=0.01, step_max=0.2)
    config = ModelConfig(vocab_size=5, width=64, layers=2, glu_width=0, mixer=mixer, lower_bound="none")
    unit: Any = LanguageModel(config).backbone.blocks[0].mixer  # pyright: ignore[reportAttributeAccessIssue]
    steps = torch.nn.functional.softplus(unit.step_proj.bias if kind == "mamba" else unit.step_bias)
    assert 0.0099 < steps.min() < 0.02
    assert 0.12 < steps.max() < 0.2001
    decay = unit.log_decay.exp()
    if kind == "mamba":
        torch.testing.assert_close(decay, torch.arange(1.0, 17).expand(128, 16))
        assert unit.step_proj.weight.abs().max() <= unit.rank**-0.5
    else:
        assert 0.999 < decay.min() < 3
        assert MOST_DECAY - 2 < decay.max() <= MOST_DECAY + 1e-4
    assert (unit.skip == 1).all()
    assert 0.4 < unit.conv.abs().max() <= 0.5
    assert 0.4 < unit.conv_bias.abs().max() <= 0.5


def test_a_longer_memory_is_a_smaller_step() -> None:
    mixers = [MixerConfig(kind="mamba2", head_size=8, step_min=step, step_max=step) for step in (1e-3, 1e-1)]
    units = [Mamba2(WIDTH, mixer).double() for mixer in mixers]
    with torch.no_grad():
        for unit in units:
            torch.manual_seed(0)
            unit.in_proj.weight.zero_()
            unit.start()
        slow, fast = (unit.log_forget(inputs(), None) for unit in units)
    torch.testing.assert_close(100 * slow, fast)


def test_only_blocks_of_these_kinds_may_stand_alone() -> None:
    shape: dict[str, Any] = {"vocab_size": 5, "width": 16, "layers": 2, "glu_width": 0}
    with pytest.raises(UserError, match="glu_width is 0; it must be at least 1 beside hgru2"):
        ModelConfig(mixer=MixerConfig(head_size=8), **shape)
    with pytest.raises(UserError, match="glu_width is 0; it must be at least 1 beside mamba with attention"):
        ModelConfig(mixer=MixerConfig(kind="mamba", head_size=8), pattern=("mamba", "attention"), **shape)
    scaled = ModelConfig(
        mixer=MixerConfig(kind="mamba"), lower_bound="none", init=InitConfig(kind="scaled_normal", std=1), **shape
    )
    block: Any = LanguageModel(scaled).backbone.blocks[1]
    assert block.glu is None
    assert block.glu_norm is None
    assert 0.6 < block.mixer.out_proj.weight.std() < 0.8  # 1 / sqrt(2): one writer in each of two layers
    with pytest.raises(UserError, match="4 heads of mamba2 do not divide into groups of 3"):
        ModelConfig(
            mixer=MixerConfig(kind="mamba2", head_size=8, groups=3), lower_bound="none", **shape | {"glu_width": 8}
        )
    for wrong, said in (
        ({"step_min": 0.2}, "step_min 0.2 and step_max 0.1 must be above 0 and in that order"),
        ({"expand": 0}, "expand is 0; it must be at least 1"),
        ({"state_size": -1}, "state_size is -1; use 0 or at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            MixerConfig(kind="mamba", **wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_rates_are_no_matrices_to_decay(kind: Any) -> None:
    from hgrn2.train.config import OptimConfig
    from hgrn2.train.optim import Optimizers

    mixer = MixerConfig(kind=kind, head_size=8, conv_width=3)
    config = ModelConfig(vocab_size=5, width=16, layers=1, glu_width=0, mixer=mixer, lower_bound="none")
    model = LanguageModel(config)
    decayed, plain = Optimizers(model, OptimConfig()).parts[0][0].param_groups
    unit: Any = model.backbone.blocks[0].mixer  # pyright: ignore[reportAttributeAccessIssue]
    assert plain["weight_decay"] == 0 < decayed["weight_decay"]
    assert {id(p) for p in plain["params"]} >= {id(p) for p in (unit.log_decay, unit.skip, unit.conv, unit.conv_bias)}
    assert {id(p) for p in decayed["params"]} >= {id(p) for p in (unit.in_proj.weight, unit.out_proj.weight)}
