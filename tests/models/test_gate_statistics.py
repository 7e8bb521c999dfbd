"""The numbers behind the image of time scales are what the gates do."""

import pytest
import torch

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.gates import gate_statistics
from hgrn2.models.language import LanguageModel


@pytest.mark.parametrize("kind", ["hgru2", "hgru1", "hgru1_real"])
@pytest.mark.parametrize("conv", [0, 3])
def test_mean_log_forget_of_constant_gates(kind: str, conv: int) -> None:
    if kind != "hgru2" and conv:
        pytest.skip("only hgru2 has a convolution")
    mixer = MixerConfig(kind=kind, head_size=4, conv_width=conv, bias=True)  # type: ignore[arg-type]
    model = LanguageModel(ModelConfig(vocab_size=5, width=8, layers=3, glu_width=8, mixer=mixer))
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.mixer.in_proj.weight.zero_()
            block.mixer.in_proj.bias.zero_()  # every forget logit is 0: f = γ + (1-γ)/2
    model.train()
    found = gate_statistics(model, torch.zeros(2, 7, dtype=torch.long))
    assert model.training
    assert len(found) == 3
    for layer, statistics in enumerate(found):
        lower_bound = torch.full((8,), layer / 3)
        torch.testing.assert_close(statistics.lower_bound, lower_bound)
        torch.testing.assert_close(statistics.mean_log_forget, (lower_bound + (1 - lower_bound) / 2).log())


def test_no_hook_stays_behind() -> None:
    model = LanguageModel(ModelConfig(vocab_size=5, width=8, layers=2, glu_width=8, mixer=MixerConfig(head_size=4)))
    gate_statistics(model, torch.zeros(1, 3, dtype=torch.long))
    assert all(not block.mixer._forward_pre_hooks for block in model.backbone.blocks)
