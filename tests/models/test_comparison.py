"""Architectures to be compared: equal in size, each in its published form, and found by name."""

from pathlib import Path

import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.models.comparison import ARCHITECTURES, COMPARED, COMPARED_SIZES, comparison_config, comparison_names
from hgrn2.models.count import parameters, state_bytes
from hgrn2.models.language import LanguageModel
from hgrn2.models.presets import preset
from hgrn2.settings import from_dict, to_dict


@pytest.mark.parametrize("size", COMPARED_SIZES)
def test_as_many_parameters_as_each_other(size: str) -> None:
    """Within 1 % of all of them, and within 2 % of those outside the embedding."""
    counts = [parameters(comparison_config(architecture, size)) for architecture in COMPARED]
    totals, inner = [one.total for one in counts], [one.non_embedding for one in counts]
    assert max(totals) <= 1.01 * min(totals), dict(zip(COMPARED, totals, strict=True))
    assert max(inner) <= 1.02 * min(inner), dict(zip(COMPARED, inner, strict=True))


def test_the_pilot_has_51_million() -> None:
    config = comparison_config("hgrn2", "45m")
    assert (config.width, config.layers, config.glu_width, config.tie_embeddings) == (512, 8, 1408, True)
    assert round(parameters(config).total / 1e6, 1) == 51.4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_small_one_runs(architecture: str) -> None:
    model = LanguageModel(comparison_config(architecture, "small", 97))
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert 4 < loss.item() < 5.2  # ln 97 = 4.57
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert from_dict(type(model.config), to_dict(model.config)) == model.config


def test_names_are_presets() -> None:
    assert len(comparison_names()) == len(ARCHITECTURES) * len(COMPARED_SIZES)
    for name in comparison_names():
        size, _, architecture = name.removeprefix("compare-").partition("/")
        assert preset(name, vocab_size=300) == comparison_config(architecture, size, 300)
    with pytest.raises(UserError, match=r"there is no architecture 'lama'; did you mean llama\? \(choose from hgrn2,"):
        preset("compare-45m/lama")
    with pytest.raises(UserError, match=r"there is no size '50m'.* \(choose from small, 45m, 125m, 350m\)"):
        comparison_config("hgrn2", "50m")


def test_the_page_says_how_large_they_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mixers.md").read_text(encoding="utf-8")
    lines = text[text.index("| architecture |") :].split("\n\n")[0].splitlines()[2:]
    found = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        found[name.strip("`")] = cells
    assert list(found) == list(COMPARED)
    for architecture, cells in found.items():
        configs = [comparison_config(architecture, size) for size in COMPARED_SIZES]
        assert cells[:-1] == [f"{parameters(config).total / 1e6:.2f}" for config in configs]
        pilot = configs[1]
        assert cells[-1] == ("grows" if pilot.grows else f"{state_bytes(pilot) / 4e3:,.0f}")
