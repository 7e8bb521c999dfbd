"""Classifiers on disk: they come back bit for bit, running statistics included, and each loader takes its own kinds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_classifiers import IMAGES, SEQUENCES, sequence_config, vision_config

from hgrn2.errors import UserError
from hgrn2.files import read_json, write_json
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import CONFIG, kind_of, load_classifier, load_model, model_hash, save_model
from hgrn2.models.sequence import SequenceClassifier
from hgrn2.models.vision import VisionClassifier


def made(name: str) -> Any:
    torch.manual_seed(0)
    if name in SEQUENCES:
        return SequenceClassifier(sequence_config(name))
    return VisionClassifier(vision_config(name))


@pytest.mark.parametrize("name", [*SEQUENCES, *IMAGES])
def test_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = made(name)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.1 * torch.rand_like(tensor)
    save_model(tmp_path / "m", model)
    loaded = load_classifier(tmp_path / "m")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert kind_of(loaded) == ("sequence" if name in SEQUENCES else "vision")
    assert model_hash(loaded) == model_hash(model)
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_running_statistics_are_part_of_the_model(tmp_path: Path) -> None:
    model = made("learned")
    images = 3 + torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    start = model_hash(model)
    model.train()(images)
    assert model_hash(model) != start
    save_model(tmp_path / "m", model)
    with torch.no_grad():
        assert torch.equal(load_classifier(tmp_path / "m")(images), model.eval()(images))


def test_each_loader_takes_its_own_kinds(tmp_path: Path) -> None:
    save_model(tmp_path / "vision", made("patches"))
    with pytest.raises(UserError, match="is of a model of kind 'vision'; this program reads 'language' here"):
        load_model(tmp_path / "vision")
    config = ModelConfig(vocab_size=9, width=16, layers=1, glu_width=16, mixer=MixerConfig(head_size=8))
    save_model(tmp_path / "language", LanguageModel(config))
    with pytest.raises(UserError, match="of kind 'language'; this program reads 'sequence' or 'vision' or 'deit' here"):
        load_classifier(tmp_path / "language")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sequence"}, "model has unknown fields: image_size, patch"),
        ({"kind": ["vision"]}, r"is of a model of kind \['vision'\]"),
        ({"kind": None}, "is of a model of kind None"),
    ],
)
def test_a_folder_of_another_kind_than_it_says(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_model(tmp_path / "m", made("patches"))
    write_json(tmp_path / "m" / CONFIG, read_json(tmp_path / "m" / CONFIG) | changes)
    with pytest.raises(UserError, match=message):
        load_classifier(tmp_path / "m")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("patch",), 3, "image_size 16 is no multiple of patch 3"),
        (("classes",), 7, r"head.proj.bias is \[5\], but config.json makes it \[7\]"),
        (("classes",), "many", "model.classes must be a whole number, not 'many'"),
        (("mixer", "direction"), "spiral", "direction is 'spiral'; choose one of: causal"),
        (("mixer", "separate_scans"), True, "lacks backbone.blocks.0.mixer.more.0.bias"),
        (("norm",), "batch", "lacks backbone.blocks.0.glu_norm.running_mean"),
        (("layers",), 10**9, "does not fit config.json"),
    ],
)
def test_settings_that_do_not_fit_the_weights(path: Any, value: Any, message: str, tmp_path: Path) -> None:
    save_model(tmp_path / "m", made("patches"))
    values = read_json(tmp_path / "m" / CONFIG)
    place = values["model"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    write_json(tmp_path / "m" / CONFIG, values)
    with pytest.raises(UserError, match=message) as caught:
        load_classifier(tmp_path / "m")
    assert "\n" not in str(caught.value)
