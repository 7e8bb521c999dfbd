"""Saving and loading models: what comes back is what went in, and whatever does not fit is one clear line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hgrn2.data.tokenizer import ByteTokenizer, load_tokenizer
from hgrn2.errors import UserError
from hgrn2.files import read_json, sha256, write_json
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import CONFIG, WEIGHTS, check_files, find_model, load_model, model_hash, save_model
from hgrn2.models.unmade import Unmade

CONFIGS = {
    "hgru2": ModelConfig(vocab_size=11, width=16, layers=2, glu_width=24, mixer=MixerConfig(head_size=8, conv_width=3)),
    "hgru1": ModelConfig(vocab_size=11, width=16, layers=2, glu_width=24, mixer=MixerConfig(kind="hgru1", bias=True)),
    "tied": ModelConfig(
        vocab_size=11, width=16, layers=1, glu_width=24, tie_embeddings=True, mixer=MixerConfig(head_size=8)
    ),
}


def made(name: str = "hgru2", seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(CONFIGS[name])


def checkpoint(run: Path, step: int, model: LanguageModel) -> Path:
    """A checkpoint folder as a trainer leaves it."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    save_model(folder, model)
    (folder / "optimizer.safetensors").write_bytes(b"something of the trainer's")
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    write_json(folder / "manifest.json", files)
    return folder


def rewrite(folder: Path, **changes: object) -> None:
    write_json(folder / CONFIG, {**read_json(folder / CONFIG), **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", made())
    return tmp_path / "model"


@pytest.mark.parametrize("name", CONFIGS)
def test_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = made(name)
    save_model(tmp_path / "m", model)
    loaded = load_model(tmp_path / "m")
    assert loaded.config == model.config
    assert not loaded.training
    assert model_hash(loaded) == model_hash(model)
    tokens = torch.tensor([[1, 5, 10, 0]])
    assert torch.equal(loaded(tokens)[0], model.eval()(tokens)[0])


def test_loaded_weights_train_without_touching_the_file(folder: Path) -> None:
    before = sha256(folder / WEIGHTS)
    loaded = load_model(folder).train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).backward()
    optimizer.step()
    assert model_hash(loaded) != model_hash(made())
    assert sha256(folder / WEIGHTS) == before


def test_dtype(folder: Path) -> None:
    assert {p.dtype for p in load_model(folder).parameters()} == {torch.float32}
    narrow = load_model(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert model_hash(narrow) != model_hash(load_model(folder))


def test_tokenizer_goes_along(tmp_path: Path) -> None:
    save_model(tmp_path / "m", made(), ByteTokenizer())
    place = find_model(tmp_path / "m").tokenizer
    assert place is not None
    assert load_tokenizer(place).identity() == ByteTokenizer().identity()


def test_nothing_is_overwritten(folder: Path) -> None:
    before = sha256(folder / WEIGHTS)
    with pytest.raises(UserError, match="already exists; it is not overwritten"):
        save_model(folder, made(seed=1))
    assert sha256(folder / WEIGHTS) == before


def test_a_failed_write_leaves_nothing_that_looks_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hgrn2.models.saved.save_file", full)
    with pytest.raises(UserError, match=r"m/model\.safetensors cannot be written: No space left on device"):
        save_model(tmp_path / "m", made())
    assert list(tmp_path.iterdir()) == []


def test_hash_depends_on_settings_and_every_weight() -> None:
    model = made()
    first = model_hash(model)
    assert model_hash(made()) == first
    with torch.no_grad():
        model.embedding.weight[3, 4] += 1e-6
    assert model_hash(model) != first
    torch.manual_seed(0)
    assert model_hash(LanguageModel(replace(CONFIGS["hgru2"], norm_eps=2e-6))) != first


def test_newest_checkpoint_of_a_run(tmp_path: Path) -> None:
    old, new = made(seed=1), made(seed=2)
    checkpoint(tmp_path, 90, old)
    newest = checkpoint(tmp_path, 100_000_000, new)  # a digit more: numbers are compared, not names
    (tmp_path / "checkpoints" / ".step-200000000.x.tmp").mkdir()
    (tmp_path / "tokenizer").mkdir()
    found = find_model(tmp_path)
    assert found == (newest, tmp_path, 100_000_000)
    assert found.tokenizer == tmp_path / "tokenizer"
    assert model_hash(load_model(tmp_path)) == model_hash(new)
    direct = find_model(tmp_path / "checkpoints" / "step-00000090")
    assert (direct.run, direct.step, direct.tokenizer) == (tmp_path, 90, tmp_path / "tokenizer")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / WEIGHTS), "model.safetensors is damaged: its checksum differs"),
        (lambda f: flip(f / CONFIG), "config.json is damaged: its checksum differs"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x"), "model.safetensors is damaged: 1 bytes instead of"),
        (lambda f: (f / WEIGHTS).unlink(), "is incomplete: model.safetensors is missing"),
        (lambda f: (f / "optimizer.safetensors").unlink(), "is damaged: optimizer.safetensors is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not valid JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json must hold an object, not a list"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json is damaged: it does not list config.json"),
        (lambda f: rewrite_manifest(f, {"../x": {"bytes": 1}}), "manifest.json: '../x' is not a plain file name"),
        (lambda f: rewrite_manifest(f, {"x": {"bytes": "1"}}), "manifest.json is damaged at 'x'"),
    ],
)
def test_damaged_checkpoint(tmp_path: Path, damage, message: str) -> None:
    checkpoint(tmp_path, 1, made(seed=1))
    newest = checkpoint(tmp_path, 2, made(seed=2))
    check_files(newest)
    damage(newest)
    with pytest.raises(UserError) as refused:
        load_model(newest)
    assert message in str(refused.value)
    with pytest.raises(UserError) as refused:
        load_model(tmp_path)
    assert message in str(refused.value)
    assert str(refused.value).endswith("step-00000001: give that folder")
    assert "\n" not in str(refused.value)
    heard: list[str] = []
    assert model_hash(load_model(tmp_path, warn=heard.append)) == model_hash(made(seed=1))
    assert len(heard) == 1
    assert heard[0].endswith("taking step-00000001, the newest whole checkpoint")


def rewrite_manifest(folder: Path, more: dict) -> None:
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), **more})


def test_no_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_model(tmp_path)
    flip(checkpoint(tmp_path, 1, made()) / WEIGHTS)
    with pytest.raises(UserError, match="has no whole checkpoint"):
        load_model(tmp_path, warn=print)


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        load_model(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2; this program reads format 1"),
        ({"kind": "vision"}, "of a model of kind 'vision'"),
        ({"model": {"vocab_size": 11}}, "model lacks width, layers, glu_width"),
        ({"model": 3}, "model must be an object"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, changes: dict, message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(UserError) as refused:
        load_model(folder)
    assert message in str(refused.value)
    assert CONFIG in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("colour", "red", "model has unknown fields: colour"),
        ("glu_width", 25, r"glu.in_proj.weight is \[48, 16\], but config.json makes it \[50, 16\]"),
        ("layers", 1, r"has unknown tensors backbone.blocks.1.\S+, \S+, \S+ and \d+ more"),
        ("layers", 3, "lacks backbone.blocks.2"),
        ("layers", 10**9, "tensors, 1000000000 layers"),
        ("width", 10**12, "config.json: Storage size calculation overflowed"),
        ("tie_embeddings", True, "has unknown tensors head.weight$"),
    ],
)
def test_settings_of_another_model(folder: Path, field: str, value: object, message: str) -> None:
    rewrite(folder, model={**read_json(folder / CONFIG)["model"], field: value})
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_weights_that_are_no_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["embedding.weight"] = tensors["embedding.weight"].int()
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"embedding.weight has dtype I32, which is no floating-point type"):
        load_model(folder)
    data = (folder / WEIGHTS).read_bytes()
    for broken in (b"", b"{}", data[:-7], json.dumps({"a": 1}).encode() * 10):
        (folder / WEIGHTS).write_bytes(broken)
        with pytest.raises(UserError, match=r"model.safetensors is damaged or not a safetensors file"):
            load_model(folder)


def test_unusable_device(folder: Path) -> None:
    for device in ("abacus", "cuda:99"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used"):
            load_model(folder, device)


def test_a_copied_folder_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert model_hash(load_model(tmp_path / "copy")) == model_hash(load_model(folder))


def test_a_model_to_be_loaded_draws_no_initial_weights() -> None:
    before = torch.get_rng_state()
    with Unmade():
        model = LanguageModel(CONFIGS["hgru2"])
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_several_dtypes_are_refused_unless_one_is_asked_for(tmp_path: Path) -> None:
    save_model(tmp_path / "model", made())
    weights = load_file(tmp_path / "model" / WEIGHTS)
    name = "backbone.blocks.0.glu.in_proj.weight"
    save_file(weights | {name: weights[name].half()}, tmp_path / "model" / WEIGHTS)
    with pytest.raises(UserError, match=rf"{name} in F16.*: write all weights in one dtype, or load them with dtype="):
        load_model(tmp_path / "model")
    loaded = load_model(tmp_path / "model", dtype=torch.float32)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
