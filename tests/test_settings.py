"""Settings: what they refuse, how they come back from JSON, and how texts of the command line change them."""

import dataclasses
import json
from dataclasses import field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.settings import from_dict, settings, to_dict, with_overrides


@settings
class Inner:
    size: int = 3
    rate: float = 0.5


@settings
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    limit: int | None = None
    layers: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)


def model(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 11, "width": 256, "layers": 2, "glu_width": 8} | changes)


def message(call: Any, *args: Any, **kwargs: Any) -> str:
    """The refusal of a call: always a `UserError` of one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"layers": -1}, "layers is -1; it must be at least 1"),
        ({"glu_width": 0}, "glu_width is 0; it must be at least 1 beside hgru2"),
        ({"width": 100}, "width 100 does not divide into heads of head_size 128"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be in [0, 1)"),
        ({"dropout": -0.1}, "dropout is -0.1; it must be in [0, 1)"),
        ({"dropout": float("nan")}, "dropout is nan; it must be a finite number"),
        ({"norm": "head_rms"}, "norm head_rms is offered inside the mixer only"),
        ({"norm": "group"}, "norm is 'group'; choose one of: rms, layer, simple_rms, head_rms, batch, none"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be positive"),
        ({"norm_eps": float("nan")}, "norm_eps is nan; it must be a finite number"),
        ({"glu_activation": "relu"}, "glu_activation is 'relu'; choose one of: none, silu, gelu; did you mean gelu?"),
        ({"lower_bound": "learned"}, "lower_bound is 'learned'; choose one of: inclusive, exclusive, none"),
    ],
)
def test_models_that_cannot_work(changes: dict[str, Any], said: str) -> None:
    assert message(model, **changes) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"kind": "lstm"},
            "kind is 'lstm'; choose one of: hgru2, hgru1, hgru1_real, wide_hgru1, gla, mamba, mamba2, mingru, rglru, "
            "lru, attention",
        ),
        ({"head_size": 0}, "head_size is 0; it must be at least 1"),
        ({"norm_eps": -1.0}, "norm_eps is -1.0; it must be positive"),
        ({"conv_width": 1}, "conv_width is 1; use 0 or at least 2"),
        ({"conv_width": -4}, "conv_width is -4; use 0 or at least 2"),
        ({"input_activation": "sigmoid"}, "input_activation is 'sigmoid'; choose one of: none, silu"),
        ({"output_activation": "none"}, "output_activation is 'none'; choose one of: silu, sigmoid"),
        ({"kind": "hgru1", "norm": "head_rms"}, "norm head_rms needs heads, which hgru1 has not"),
        (
            {"kind": "hgru1", "conv_width": 4},
            "conv_width 4 is offered for hgru2, gla, mamba, mamba2, rglru, attention, not for hgru1",
        ),
        (
            {"kind": "hgru1_real", "scale_scores": True},
            "scale_scores=true is offered for hgru2, gla, not for hgru1_real",
        ),
    ],
)
def test_mixers_that_cannot_work(changes: dict[str, Any], said: str) -> None:
    assert message(MixerConfig, **changes) == said


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_starts_that_cannot_work(std: float) -> None:
    assert message(InitConfig, std=std) == f"init std is {std}; it must be positive"
    assert message(InitConfig, kind="zeros").startswith("kind is 'zeros'; choose one of: normal")


def test_vector_states_need_no_heads() -> None:
    assert model(width=100, mixer=MixerConfig(kind="hgru1")).heads == 1
    assert model(mixer=MixerConfig(head_size=64)).heads == 4


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        model().width = 3  # type: ignore[misc]


def test_json_round_trip() -> None:
    config = model(mixer=MixerConfig(head_size=32, conv_width=4, norm="layer"), dropout=0.25, init=InitConfig(std=0.03))
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
    outer = Outer(name="x", layers=(3, 5), limit=7, inner=Inner(size=9))
    assert from_dict(Outer, json.loads(json.dumps(to_dict(outer)))) == outer
    assert from_dict(Outer, {"name": "x"}) == Outer(name="x")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "config must be an object, not list"),
        ({"name": "x", "colour": 1, "age": 2}, "config has unknown fields: age, colour"),
        ({}, "config lacks name"),
        ({"name": 3}, "config.name must be text, not 3"),
        ({"name": "x", "kind": "c"}, "config.kind is 'c'; choose one of: a, b"),
        ({"name": "x", "flag": 1}, "config.flag must be true or false, not 1"),
        ({"name": "x", "limit": "many"}, "config.limit must be a whole number, not 'many'"),
        ({"name": "x", "layers": [1, 2.5]}, "config.layers must be a whole number, not 2.5"),
        ({"name": "x", "inner": 3}, "config.inner must be an object, not int"),
        ({"name": "x", "inner": {"size": True}}, "config.inner.size must be a whole number, not True"),
        ({"name": "x", "inner": {"rate": None}}, "config.inner.rate must be a number, not None"),
        ({"name": "x", "inner": {"rate": "fast"}}, "config.inner.rate must be a number, not 'fast'"),
        ({"name": "x", "inner": {"weight": 1}}, "config.inner has unknown fields: weight"),
    ],
)
def test_values_that_do_not_fit_are_named(values: Any, said: str) -> None:
    assert message(from_dict, Outer, values) == said


def test_numbers_take_the_annotated_type() -> None:
    made = from_dict(Outer, {"name": "x", "limit": 4.0, "inner": {"size": "12", "rate": 2}})
    assert (made.limit, made.inner.size, made.inner.rate) == (4, 12, 2.0)
    assert [type(x) for x in (made.limit, made.inner.size, made.inner.rate)] == [int, int, float]
    assert from_dict(Outer, {"name": "x", "limit": None}).limit is None


def test_overrides_reach_nested_settings() -> None:
    base = Outer(name="x", limit=4)
    changed = with_overrides(
        base, ("inner.size=64", "kind = b", "flag=true", "limit=none", "layers=1,2,3", "inner.rate=1e-3", "name=a=b")
    )
    assert changed == Outer(name="a=b", kind="b", flag=True, layers=(1, 2, 3), inner=Inner(size=64, rate=1e-3))
    assert base == Outer(name="x", limit=4)
    assert with_overrides(base, ()) == base


def test_overrides_of_a_model() -> None:
    changed = with_overrides(model(), ("width=64", "mixer.head_size=16", "mixer.scale_scores=True", "dropout=0.1"))
    assert changed == model(width=64, mixer=MixerConfig(head_size=16, scale_scores=True), dropout=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width", "setting 'width': write it as name=value"),
        ("depth=3", "there is no setting depth; did you mean width?"),
        ("mixer.headsize=3", "there is no setting mixer.headsize; did you mean mixer.head_size?"),
        ("width.mixer=3", "there is no setting width.mixer; did you mean width?"),
        ("init=3", "init is a group; set one of its fields: kind, std, input_std, memory"),
        ("width=wide", "width must be a whole number, not 'wide'"),
        ("glu_bias=yes", "glu_bias must be true or false, not 'yes'"),
        ("mixer.head_size=100", "width 256 does not divide into heads of head_size 100"),
        ("norm=group", "norm is 'group'; choose one of: rms, layer, simple_rms, head_rms, batch, none"),
    ],
)
def test_overrides_that_do_not_fit(text: str, said: str) -> None:
    assert message(with_overrides, model(), (text,)) == said


WORDS = st.sampled_from(["", "a", "7", "-2.5", "nan", "none", "true", "size", "rate", "1,2"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(WORDS, children, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["name", "kind", "flag", "limit", "inner", "other"]), JSON))
def test_any_json_is_settings_or_a_refusal(values: dict[str, Any]) -> None:
    """Outside input never raises anything but `UserError`, and never makes a value of the wrong type."""
    try:
        made: Outer | str = from_dict(Outer, values)
    except UserError as error:
        made = str(error)
    if isinstance(made, str):
        assert made.count("\n") == 0
        return
    assert isinstance(made.name, str)
    assert made.limit is None or type(made.limit) is int
    assert type(made.inner.size) is int
