"""Settings that are one of several kinds say which; files of earlier versions, which did not, still load."""

import json
from typing import Any

import pytest

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.classifier_presets import sequence_preset, vision_preset
from hgrn2.models.config import DeiTConfig, InitConfig, ModelConfig
from hgrn2.settings import from_dict, to_dict, with_overrides
from hgrn2.tasks.classify.config import ClassifyRun

MODELS: dict[str, Any] = {
    "sequence": sequence_preset("hgrn2_lra_listops", layers=2, width=64),
    "vision": vision_preset("hgrn2_vit_tiny", layers=2),
    "deit": DeiTConfig(classes=10),
}


def written(model: Any) -> dict[str, Any]:
    """A run's config.json."""
    return json.loads(json.dumps(to_dict(ClassifyRun(task="listops", model=model))))


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_says_which_kind_of_model_it_has(kind: str) -> None:
    values = written(MODELS[kind])
    assert values["model"]["kind"] == kind
    assert from_dict(ClassifyRun, values).model == MODELS[kind]
    assert "kind" not in to_dict(MODELS[kind])  # a model folder says it beside the settings


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_written_before_there_were_tags_loads(kind: str) -> None:
    values = written(MODELS[kind])
    del values["model"]["kind"]
    assert from_dict(ClassifyRun, values).model == MODELS[kind]


def test_a_kind_that_does_not_fit_is_named() -> None:
    values = written(MODELS["vision"])
    values["model"]["kind"] = "visoin"
    with pytest.raises(UserError, match=r"model.kind is 'visoin'; choose one of: sequence, vision, deit; did"):
        from_dict(ClassifyRun, values)
    values["model"]["kind"] = "deit"
    with pytest.raises(UserError, match=r"config.model has unknown fields: "):
        from_dict(ClassifyRun, values)
    values["model"] = {"width": 3}
    with pytest.raises(UserError, match=r"config.model lacks kind: one of sequence, vision, deit"):
        from_dict(ClassifyRun, values)
    values["model"] = 3
    with pytest.raises(UserError, match=r"config.model must be an object, not 3"):
        from_dict(ClassifyRun, values)


def test_overrides_keep_the_kind() -> None:
    run = ClassifyRun(task="imagenet", model=MODELS["deit"])
    assert with_overrides(run, ("model.width=128",)).model == DeiTConfig(classes=10, width=128)
    with pytest.raises(UserError, match=r"there is no setting model.kind"):
        with_overrides(run, ("model.kind=vision",))


def test_settings_that_are_gone_load_where_they_had_the_value_that_stayed() -> None:
    model = ModelConfig(vocab_size=7, width=16, layers=1, glu_width=16, mixer=MixerConfig(head_size=8))
    values = to_dict(model)
    values["mixer"] |= {"norm_first": True, "count_once": False}
    values["init"] |= {"zero_outputs": False}
    assert from_dict(ModelConfig, values) == model
    for kind, name, value in (
        (MixerConfig, "norm_first", False),
        (MixerConfig, "count_once", True),
        (InitConfig, "zero_outputs", True),
    ):
        with pytest.raises(UserError, match=rf"config.{name} is {value}, which hgrn2 no longer does"):
            from_dict(kind, {name: value})
