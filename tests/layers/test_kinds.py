"""The table of docs/mixers.md against the settings: what it says is offered is accepted, the rest is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.export.language import check_supported
from hgrn2.generate.steps import choose_graph
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.kinds import KINDS
from hgrn2.models.config import ModelConfig
from hgrn2.models.count import state_bytes
from hgrn2.models.language import LanguageModel
from hgrn2.models.tuned import StateTuned

PAGE = Path(__file__).parents[2] / "docs" / "mixers.md"
every = pytest.mark.parametrize("name", KINDS)


def rows() -> dict[str, list[str]]:
    """The first table of the page, by kind."""
    text = PAGE.read_text(encoding="utf-8")
    found = {}
    for line in text[text.index("| kind |") :].split("\n\n")[0].splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        found[name.strip("`")] = cells
    return found


def test_the_page_is_the_table() -> None:
    found = rows()
    assert list(found) == list(KINDS)
    for name, kind in KINDS.items():
        flags = (
            kind.heads, kind.lower_bounds, kind.gates, "conv_width" in kind.offers, "input_activation" in kind.offers,
            "scale_scores" in kind.offers, kind.norm,
        )  # fmt: skip
        assert found[name] == [
            *("yes" if flag else "no" for flag in flags), ", ".join(kind.directions), kind.tokens
        ]  # fmt: skip


def accepted(name: str, **options: Any) -> bool:
    lower_bound = {} if KINDS[name].lower_bounds else {"lower_bound": "none"}  # type: ignore[index]
    stack = {key: options.pop(key) for key in ("lower_bound", "width") if key in options}
    try:
        mixer = MixerConfig(**{"kind": name, "head_size": 8} | options)
        values: dict[str, Any] = {"vocab_size": 5, "width": 16, "layers": 1, "glu_width": 8, "mixer": mixer}
        if mixer.direction == "causal":
            ModelConfig(**values | lower_bound | stack)
    except UserError:
        return False
    return True


@every
def test_settings_are_offered_as_the_table_says(name: Any) -> None:
    kind = KINDS[name]
    assert accepted(name)
    assert accepted(name, width=12) != kind.heads  # 8 does not divide 12
    assert accepted(name, lower_bound="inclusive") == kind.lower_bounds
    values = {"conv_width": 4, "input_activation": "silu", "scale_scores": True, "rotary": False, "window": 3}
    values |= {
        "expansion": 4,
        "expansion_map": "low_rank",
        "qk_norm": True,
        "key_size": 4,
        "expand": 3,
        "state_size": 5,
        "groups": 2,
        "step_min": 0.01,
    }
    for setting, value in values.items():
        assert accepted(name, **{setting: value}) == (setting in kind.offers), setting
    across = {"output_gate": "silu", "separate_scans": True, "local_width": 3}
    for setting, value in across.items():
        both_ways = accepted(name, direction="bidirectional", **{setting: value})
        assert both_ways == (setting in kind.offers), setting
        assert not accepted(name, **{setting: value}), setting
    for direction in KINDS["hgru2"].directions:
        assert accepted(name, direction=direction) == (direction in kind.directions)


@every
def test_states_are_offered_as_the_table_says(name: Any) -> None:
    kind = KINDS[name]
    lower_bound = {} if kind.lower_bounds else {"lower_bound": "none"}
    mixer = MixerConfig(kind=name, head_size=8)
    config = ModelConfig(vocab_size=5, width=16, layers=1, glu_width=8, mixer=mixer, **lower_bound)  # type: ignore[arg-type]
    model = LanguageModel(config)
    if kind.narrow_states:
        assert model.zeros(1, torch.bfloat16).layers[0].batch == 1
    else:
        with pytest.raises(UserError, match=f"states of {name} are float32, not bfloat16"):
            model.zeros(1, torch.bfloat16)
    assert choose_graph(torch.device("cuda"), "auto", grows=config.grows)[0] != kind.grows
    if kind.grows:
        with pytest.raises(UserError, match="cannot be tuned"):
            StateTuned(model, 0)
    else:
        assert StateTuned(model, 0).learned.nbytes == state_bytes(config)
    if name == "hgru2":
        check_supported(config)
    else:
        with pytest.raises(UserError, match=f"ONNX export is for hgru2, not for {name}"):
            check_supported(config)


@every
def test_what_does_not_fit_is_left_out(name: Any) -> None:
    """From a mixer with every option to another kind, as `--set model.mixer.kind` does."""
    values = {
        "kind": name, "head_size": 8, "conv_width": 4, "input_activation": "silu", "scale_scores": True,
        "norm": "head_rms",
    }  # fmt: skip
    MixerConfig(**MixerConfig.fitted(name, values))
    if name == "hgru2":
        assert MixerConfig.fitted(name, values) == values | {
            "rotary": True, "qk_norm": False, "window": 0, "key_size": 0, "expansion": 0, "expansion_map": "dense",
            "expand": 2, "state_size": 0, "groups": 1, "step_min": 1e-3, "step_max": 0.1,
        }  # fmt: skip
