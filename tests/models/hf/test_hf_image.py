"""Image classifiers as transformers' classes: the same numbers, folders, labels, training, preprocessing, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_classifiers import IMAGES, vision_config
from torch import Tensor

import hgrn2
from hgrn2.cli.main import entry
from hgrn2.data.classes import Described, Examples, write_examples
from hgrn2.errors import UserError
from hgrn2.files import write_json
from hgrn2.models.hf import HGRN1ForImageClassification, HGRN2ForImageClassification, from_vision_classifier
from hgrn2.models.hf.writing import preprocessing, write_hf_image
from hgrn2.models.presets import vision_names, vision_preset
from hgrn2.models.saved import save_model
from hgrn2.models.vision import VisionClassifier

NAMES = [name for name in IMAGES if name != "attention patches"]
every = pytest.mark.parametrize("name", NAMES)
ANIMALS = ("cat", "dog", "owl", "eel", "bee")


def made(name: str, **changes: Any) -> VisionClassifier:
    """Of small size, with nothing at its neutral value, running statistics included."""
    torch.manual_seed(0)
    model = VisionClassifier(vision_config(name, **changes)).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.2 * torch.rand_like(tensor)
    return model


def images(model: VisionClassifier, side: int = 16, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, model.config.channels, side, side, generator=generator)


@every
def test_the_same_numbers_as_our_own(name: str) -> None:
    own = made(name)
    model = from_vision_classifier(own)
    kind = HGRN1ForImageClassification if own.config.mixer.kind != "hgru2" else HGRN2ForImageClassification
    assert type(model) is kind
    x, labels = images(own), torch.tensor([0, 4, 2])
    found = model(x, labels=labels, output_hidden_states=True)
    assert torch.equal(found.logits, own(x))
    assert torch.equal(found.loss, own.loss(x, labels))
    assert len(found.hidden_states) == own.config.layers + 1
    assert torch.equal(found.hidden_states[-1], own.hidden(x))
    assert torch.equal(model(x, return_dict=False)[0], found.logits)
    assert torch.equal(model(images(own, 24)).logits, own(images(own, 24)))
    back = model.to_vision_classifier()
    assert back.config == own.config
    assert torch.equal(back(x), own(x))


@every
def test_a_folder_comes_back(name: str, tmp_path: Path) -> None:
    own = made(name)
    from_vision_classifier(own, id2label=dict(enumerate(ANIMALS))).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.to_vision_classifier().config == own.config
    assert torch.equal(loaded(images(own)).logits, own(images(own)))
    assert loaded.config.id2label[4] == "bee"
    assert transformers.AutoConfig.from_pretrained(tmp_path).model_type == loaded.config.model_type


@pytest.mark.parametrize("name", ["patches", "learned"])
def test_another_number_of_classes_keeps_everything_but_the_head(name: str, tmp_path: Path) -> None:
    """Fine-tuning's way in; `learned` has running statistics, which are no parameters."""
    own = made(name)
    from_vision_classifier(own).save_pretrained(tmp_path)
    load = transformers.AutoModelForImageClassification.from_pretrained
    torch.manual_seed(0)
    loaded = load(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert loaded(images(own)).logits.shape == (3, 3)
    theirs = own.state_dict()
    for key, value in loaded.vision.state_dict().items():
        if not key.startswith("head.proj"):
            assert torch.equal(value, theirs[key]), key
    assert 0.005 < float(loaded.vision.head.proj.weight.detach().std()) < 0.04
    with pytest.raises(UserError, match=r"vision.head.proj.* is \[5.*\], but its config.json makes it \[3"):
        load(tmp_path, num_labels=3)


def test_starts_like_our_own() -> None:
    config = hgrn2.HGRN2VisionConfig(
        num_labels=5, image_size=16, patch=4, width=16, layers=2, mixer={"head_size": 8}, init={"std": 0.05}
    )
    torch.manual_seed(3)
    model = HGRN2ForImageClassification(config)
    torch.manual_seed(3)
    own = VisionClassifier(config.to_vision_config())
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in model.vision.state_dict().items())


@pytest.mark.parametrize("name", [name for name in vision_names() if name.startswith("hgrn")])
def test_presets_are_the_defaults_of_their_kind(name: str) -> None:
    wanted: Any = vision_preset(name, classes=7)
    kind = hgrn2.HGRN1VisionConfig if name.startswith("hgrn1") else hgrn2.HGRN2VisionConfig
    config = kind(num_labels=7, hidden_size=wanted.width)
    assert config.to_vision_config() == wanted
    assert (config.num_hidden_layers, config.patch_size, config.num_channels) == (12, wanted.patch, 3)
    assert kind.from_vision_config(wanted).to_vision_config() == wanted


def recomputing(model: Any) -> None:
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()


def test_recomputation_gives_the_same_gradients() -> None:
    own = made("patches")
    model, x, labels = from_vision_classifier(own), images(own), torch.tensor([0, 4, 2])
    found = []
    for recompute in (False, True):
        if recompute:
            recomputing(model)
        model.train().zero_grad()
        model(x, labels=labels).loss.backward()
        assert model.vision.backbone.recompute_blocks == recompute
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    batch = from_vision_classifier(made("learned"))
    recomputing(batch)
    with pytest.raises(UserError, match="running statistics of norm batch"):
        batch.train()(x, labels=labels)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_trainer_takes_a_step_and_its_folder_loads(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    own = made("patches")
    model = from_vision_classifier(made("patches"))
    rows = [{"pixel_values": x, "labels": n % 5} for n, x in enumerate(images(own, count=8))]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4, report_to=[],
        learning_rate=1e-2, remove_unused_columns=True, save_steps=1, use_cpu=True, disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)  # type: ignore[arg-type]
    loss = trainer.train().training_loss
    labels = torch.tensor([row["labels"] for row in rows])
    with torch.no_grad():
        expected = float(own.loss(images(own, count=8), labels))
    assert abs(loss - expected) < 1e-4  # the parts of a step: the mean of their means
    assert not torch.equal(model.vision.head.proj.weight, own.head.proj.weight)
    saved = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "checkpoint-1")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in saved.state_dict().items())
    scores = trainer.predict(rows).predictions  # type: ignore[arg-type]
    assert np.allclose(scores, model.eval()(images(own, count=8)).logits.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("channels", [3, 1])
def test_the_image_processor_shows_what_training_showed(channels: int, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    own = made("patches", channels=channels)
    write_hf_image(tmp_path / "hf", own, ANIMALS)
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, channels), dtype=np.uint8)
    found = processor(list(pixels), return_tensors="pt")["pixel_values"]
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    assert torch.allclose(found, wanted, atol=1e-6)
    smaller = processor(np.zeros((40, 30, channels), np.uint8), return_tensors="pt")["pixel_values"]
    assert smaller.shape == (1, channels, 16, 16)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder, whose data tells the names of the classes; a model folder, which does not."""
    own, run, data = made("patches"), tmp_path / "run", tmp_path / "data"
    labels = np.arange(5)
    some = Examples(a=np.zeros((5, 16, 16, 3), np.uint8), labels=labels)
    write_examples(data, Described(task="animals", classes=ANIMALS, vocab_size=256, origin="test"), {"train": some})
    save_model(run / "checkpoints" / "step-00000001", own)
    write_json(run / "config.json", {"kind": "classify", "data": {"folder": str(data)}})
    assert entry(["convert", "to-hf", str(run), str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "note" not in out
    assert "hgru2, 2 layers of 16" in out
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    assert torch.equal(model(images(own)).logits, own(images(own)))
    assert tuple(model.config.id2label.values()) == ANIMALS
    assert model.config.label2id["owl"] == 2
    assert len({path.stat().st_mode for path in (tmp_path / "a").iterdir()}) == 1

    save_model(tmp_path / "own", made("pixels"))
    assert entry(["convert", "to-hf", str(tmp_path / "own"), str(tmp_path / "b"), "--shard-size", "9KB"]) == 0
    out = capsys.readouterr().out
    assert "LABEL_0" in out
    assert "grey" in out
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1
    assert transformers.AutoConfig.from_pretrained(tmp_path / "b").id2label[1] == "LABEL_1"


def test_the_command_refuses_what_has_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "own", made("attention patches"))
    assert entry(["convert", "to-hf", str(tmp_path / "own"), str(tmp_path / "hf")]) == 2
    error = capsys.readouterr().err
    assert "a model with attention has no transformers class here" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(("fields", "message"), [
    ({"depth": 3}, "HGRN2VisionConfig has unknown fields: depth"),
    ({"mixer": {"kind": "hgru1"}}, "HGRN2VisionConfig: mixer hgru1 is none of hgru2"),
    ({"mixer": {"heads": 3}}, "HGRN2VisionConfig.mixer has unknown fields: heads"),
    ({"patch": 15}, "HGRN2VisionConfig: image_size 224 is no multiple of patch 15"),
    ({"width": 100}, "HGRN2VisionConfig: width 100 does not divide into heads of head_size 64"),
    ({"layers": "many"}, "HGRN2VisionConfig.layers must be a whole number, not 'many'"),
    ({"num_labels": 1}, "HGRN2VisionConfig: classes is 1; it must be at least 2"),
    ({"norm": "tall"}, "HGRN2VisionConfig.norm is 'tall'; choose one of"),
])  # fmt: skip
def test_settings_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        hgrn2.HGRN2VisionConfig(**fields)
    assert message in str(caught.value)


def test_what_does_not_fit(tmp_path: Path, make: Callable) -> None:
    own = made("patches")
    model = from_vision_classifier(own)
    with pytest.raises(UserError, match="give pixel_values"):
        model()
    with pytest.raises(UserError, match=r"images must be \[B,3,height,width\] floating-point; got .* uint8"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="id2label names 2 classes, the model has 5"):
        from_vision_classifier(own, id2label={0: "a", 1: "b"})
    model.save_pretrained(tmp_path / "image")
    with pytest.raises(UserError, match="is of model_type 'hgrn2_vision'; HGRN2ForCausalLM reads 'hgrn2'"):
        hgrn2.HGRN2ForCausalLM.from_pretrained(tmp_path / "image")
    save_model(tmp_path / "own", own)
    with pytest.raises(UserError, match="is a model folder of ours"):
        HGRN2ForImageClassification.from_pretrained(tmp_path / "own")
    weights = tmp_path / "image" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        HGRN2ForImageClassification.from_pretrained(tmp_path / "image")


def test_preprocessing_is_said_for_every_number_of_channels() -> None:
    for name, channels in (("patches", 3), ("pixels", 1)):
        said = preprocessing(vision_config(name))
        assert said["image_mean"] == said["image_std"] == [0.5] * channels
        assert said["do_convert_rgb"] == (channels == 3)
