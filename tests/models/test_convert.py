"""Published checkpoints compute here what they compute at home, and go back to the bit."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import published
import pytest
import torch
from published import FLA, HGRU2, TOKENS, VARIANTS, logits, made, randomised, shapes, write
from safetensors.torch import load_file
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.files import read_json
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.convert import family_of, read_published, write_fla
from hgrn2.models.language import LanguageModel
from hgrn2.models.presets import preset

OF_FLA = [name for name in VARIANTS if name.startswith("fla")]


def ours(folder: Path, **options: Any) -> Tensor:
    return read_published(folder, **options).double()(TOKENS)[0].detach()


def same(actual: Tensor, expected: Tensor, share: float = 1e-11) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= share * float(expected.abs().max())


def same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_are_those_of_the_published_model(tmp_path: Path, variant: str, shards: int) -> None:
    config = VARIANTS[variant]
    tensors = randomised(shapes(config))
    same(ours(write(tmp_path / "m", config, tensors, shards)), logits(config, tensors))


def test_the_comparison_sees_the_eps_that_the_file_does_not_say(tmp_path: Path) -> None:
    tensors = randomised(shapes(FLA))
    told = published.fla_logits(FLA, tensors, eps=FLA["norm_eps"])
    unscaled = published.fla_logits(FLA, tensors, eps=1e-5 * FLA["expand_ratio"])
    found = ours(write(tmp_path / "m", FLA, tensors))
    for wrong in (told, unscaled):
        assert float((found - wrong).abs().max()) > 1e-3 * float(found.abs().max())


@pytest.mark.parametrize("variant", OF_FLA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_gives_the_same_bits(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    source = made(tmp_path / "m", variant, dtype=dtype)
    model = read_published(source)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert write_fla(tmp_path / "back", model) == []
    same_bits(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))
    assert len({path.stat().st_mode for path in (tmp_path / "back").iterdir()}) == 1
    assert read_published(tmp_path / "back").config == model.config
    written = read_json(tmp_path / "back" / "config.json")
    known = {name: value for name, value in VARIANTS[variant].items() if value is not None and name in written}
    assert {name: written[name] for name in known} == known


def test_mixed_dtypes_stay(tmp_path: Path) -> None:
    tensors = randomised(shapes(FLA), torch.bfloat16)
    tensors |= {name: value.float() for name, value in tensors.items() if "g_norm" in name}
    source = write(tmp_path / "m", FLA, tensors)
    model = read_published(source)
    write_fla(tmp_path / "back", model)
    same_bits(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    assert model(TOKENS)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_left_in_the_file_of_a_tied_model(tmp_path: Path, tied: bool) -> None:
    tensors = randomised(shapes(FLA))
    config = FLA | {"tie_word_embeddings": True}
    if tied:
        tensors["lm_head.weight"] = tensors["model.embeddings.weight"].clone()
        assert read_published(write(tmp_path / "m", config, tensors)).head is None
    else:
        with pytest.raises(UserError, match=r"lm_head.weight differs from it"):
            read_published(write(tmp_path / "m", config, tensors))


def test_hgru2_without_a_head_is_tied_and_finds_its_width(tmp_path: Path) -> None:
    tensors = randomised(shapes(HGRU2))
    del tensors["lm_head.weight"]
    model = read_published(write(tmp_path / "m", HGRU2 | {"glu_dim": -1}, tensors))
    assert model.config.tie_embeddings
    assert model.config.glu_width == published.HIDDEN


def test_the_other_formula_of_the_lower_bounds(tmp_path: Path) -> None:
    tensors = randomised(shapes(HGRU2))
    folder = write(tmp_path / "m", HGRU2, tensors)
    moved = tensors | {"model.lower_bounds": tensors["model.lower_bounds"].roll(1, 0)}
    same(ours(folder, bounds="exclusive"), logits(HGRU2, moved))
    assert read_published(folder, bounds="exclusive").config.lower_bound == "exclusive"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lower_bound": "exclusive"},
        {"mixer": MixerConfig(head_size=8, norm_eps=1e-6)},
        {"mixer": MixerConfig(head_size=8, norm_eps=3e-3, scale_scores=True, norm="simple_rms"), "norm": "simple_rms"},
    ],
    ids=["unscaled", "exclusive", "another eps", "no weights"],
)
def test_models_of_ours_compute_the_same_there(tmp_path: Path, changes: dict[str, Any]) -> None:
    options = {"vocab_size": 23, "width": 16, "layers": 3, "glu_width": 24, "mixer": MixerConfig(head_size=8)}
    model = LanguageModel(ModelConfig(**options | changes))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model = model.double().eval()
    notes = write_fla(tmp_path / "out", model)
    assert all("i_proj times" in note or "(exact)" in note for note in notes)
    assert notes
    found = logits(read_json(tmp_path / "out" / "config.json"), load_file(tmp_path / "out" / "model.safetensors"))
    same(found, model(TOKENS)[0].detach())
    same(ours(tmp_path / "out"), found)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (preset("hgrn2_demo"), "norm layer"),
        (preset("hgrn1_150m"), "mixer.kind hgru1 .complex states"),
        (preset("hgrn2_70m"), "glu_activation none"),
        (replace(preset("hgrn2_340m"), scale_embeddings=True), "scale_embeddings"),
        (replace(preset("hgrn1_1.3b"), norm_eps=1e-3), "mixer.norm_eps 1e-06 beside norm_eps 0.001"),
    ],
)
def test_what_fla_cannot_express_is_refused(tmp_path: Path, config: ModelConfig, word: str) -> None:
    with torch.device("meta"):
        model = LanguageModel(replace(config, layers=1, vocab_size=8))
    with pytest.raises(UserError, match=f"no {word}"):
        write_fla(tmp_path / "out", model)
    assert list(tmp_path.iterdir()) == []


def test_old_field_names(tmp_path: Path) -> None:
    old = {name: value for name, value in FLA.items() if name != "norm_eps"}
    old |= {"rms_norm_eps": 1e-3, "share_conv_kernel": True, "use_short_conv": False, "num_heads": None}
    tensors = randomised(shapes(FLA))
    same(ours(write(tmp_path / "m", old, tensors)), logits(FLA, tensors))


def test_the_hub_models_settings_are_the_presets() -> None:
    from hgrn2.models.convert import fla

    for name, first in (("hgrn2_1.3b", False), ("hgrn2_2.7b", False), ("hgrn1_1.3b", True), ("hgrn1_2.7b", True)):
        wanted = preset(name)
        sizes = {"hidden_size": wanted.width, "num_hidden_layers": wanted.layers, "hidden_ratio": 4}
        sizes |= {"model_type": "hgrn" if first else "hgrn2", "expand_ratio": 1 if first else 128}
        assert fla.read_config(sizes, Path("config.json")) == wanted


def test_families_are_told_apart_by_field_names() -> None:
    path = Path("config.json")
    assert FLA["model_type"] == HGRU2["model_type"]
    assert (family_of(FLA, path), family_of(HGRU2, path)) == ("fla", "hgru2")
    with pytest.raises(UserError, match="two projects"):
        family_of(FLA | HGRU2, path)
    with pytest.raises(UserError, match="no known model"):
        family_of({"model_type": "hgrn2"}, path)


@pytest.fixture(scope="module")
def fla_models() -> ModuleType:
    """flash-linear-attention's own classes; they can be built on a CPU, though not run."""
    pytest.importorskip("transformers", reason="flash-linear-attention's classes need transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fla.layers", reason="flash-linear-attention is not installed", exc_type=ImportError)
        import fla.models  # pyright: ignore[reportMissingImports]
    return fla.models


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("HGRN2", {}),
        ("HGRN2", {"use_short_conv": True, "conv_size": 4}),
        ("HGRN2", {"use_lower_bound": False, "expand_ratio": None, "num_heads": 4}),
        ("HGRN2", {"tie_word_embeddings": True, "fuse_norm": False}),
        ("HGRN2", {"elementwise_affine": False}),
        ("HGRN", {"expand_ratio": 1}),
    ],
    ids=str,
)
def test_classes_of_fla_itself(fla_models: ModuleType, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    config = FLA | {"model_type": kind.lower()} | options
    names = {name: value for name, value in config.items() if name != "model_type"}
    model = getattr(fla_models, f"{kind}ForCausalLM")(getattr(fla_models, f"{kind}Config")(**names))
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    assert state == shapes(config)
    tensors = randomised(shapes(config))
    model.load_state_dict(tensors, strict=not config.get("tie_word_embeddings"))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="6KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    same(ours(tmp_path / "theirs"), logits(config, tensors))

    write_fla(tmp_path / "back", read_published(tmp_path / "theirs"))
    again = getattr(fla_models, f"{kind}ForCausalLM").from_pretrained(tmp_path / "back")
    same_bits(dict(again.state_dict()), dict(model.state_dict()))
    for name in ("norm_eps", "expand_ratio", "use_short_conv", "use_lower_bound", "elementwise_affine"):
        assert getattr(again.config, name) == getattr(model.config, name), name
