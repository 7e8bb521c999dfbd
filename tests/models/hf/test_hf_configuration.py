"""The configuration carries every field of ours and reads every field of flash-linear-attention's."""

from pathlib import Path
from typing import Any

import published
import pytest
import transformers
from small_models import HGRN, config_of

from hgrn2.errors import UserError
from hgrn2.files import read_json, write_json
from hgrn2.models.config import InitConfig
from hgrn2.models.convert import fla
from hgrn2.models.hf import HGRN1Config, HGRN2Config, HGRN2VisionConfig

OF_FLA = [name for name in published.VARIANTS if name.startswith("fla")]


@pytest.mark.parametrize("name", HGRN)
def test_every_field_of_ours_survives_the_file(name: str, tmp_path: Path) -> None:
    init = InitConfig(kind="scaled_normal", std=0.01)
    expected = config_of(name, dropout=0.125, norm_eps=1e-4, init=init)
    made = HGRN2Config.from_model_config(expected, eos_token_id=3)
    assert type(made) is (HGRN2Config if expected.mixer.kind == "hgru2" else HGRN1Config)
    made.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(made)
    assert again.to_model_config() == expected
    assert again.eos_token_id == 3
    assert read_json(tmp_path / "config.json")["model_type"] == ("hgrn2" if expected.mixer.kind == "hgru2" else "hgrn")


@pytest.mark.parametrize("variant", OF_FLA)
def test_a_file_of_fla_means_what_it_means_to_the_converter(variant: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", published.VARIANTS[variant])
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read.to_model_config() == fla.read_config(published.VARIANTS[variant], tmp_path)


def test_the_defaults_are_those_of_fla() -> None:
    assert HGRN2Config().to_model_config() == fla.read_config({"model_type": "hgrn2"}, Path("x"))
    assert HGRN2Config().intermediate_size == 5632
    assert (HGRN2Config().num_heads, HGRN2Config().expand_ratio) == (16, 128)
    assert HGRN1Config().to_model_config().mixer.kind == "hgru1_real"


def test_heads_by_either_name() -> None:
    assert HGRN2Config(hidden_size=64, num_heads=4).expand_ratio == 16
    assert HGRN2Config(hidden_size=64, expand_ratio=8).num_heads == 8
    assert HGRN2Config(hidden_size=64, expand_ratio=8, num_heads=8).num_heads == 8


def test_fields_as_they_are_now_count() -> None:
    config = HGRN2Config(hidden_size=64, num_heads=4)
    config.vocab_size = 99  # as after resize_token_embeddings
    assert config.to_model_config().vocab_size == 99


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (HGRN2Config, {"hidden_size": 64, "num_heads": 4, "expand_ratio": 8},
         "num_heads 4 x expand_ratio 8 is not hidden_size 64"),
        (HGRN2Config, {"hidden_size": 64, "num_heads": 5}, "hidden_size 64 does not divide into num_heads 5"),
        (HGRN2Config, {"hidden_size": 64}, "width 64 does not divide into heads of head_size 128"),
        (HGRN2Config, {"num_heads": 0}, "num_heads is 0"),
        (HGRN2Config, {"hidden_size": "wide"}, "hidden_size is 'wide'"),
        (HGRN2Config, {"rope_base": 3, "window": 4}, "unknown fields: rope_base, window"),
        (HGRN2Config, {"attn": {"layers": [1], "num_heads": 2}}, "hybrid with softmax attention"),
        (HGRN2Config, {"attnres_block_size": 4}, "attention over residuals is not supported"),
        (HGRN2Config, {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        (HGRN2Config, {"use_short_conv": True, "share_conv_kernel": False}, "short convolutions of 2024"),
        (HGRN2Config, {"decoder_embed_dim": 16, "decoder_layers": 2}, "is of hgru2-pytorch: use `hgrn2 convert hgru2`"),
        (HGRN2Config, {"dropout": 1.5}, "dropout is 1.5"),
        (HGRN2Config, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        (HGRN1Config, {"expand_ratio": 2}, "expand_ratio 2 of HGRN is not supported"),
        (HGRN1Config, {"use_short_conv": True}, "use_short_conv of HGRN is not supported"),
    ],
)  # fmt: skip
def test_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        kind(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [HGRN2Config, HGRN1Config, HGRN2VisionConfig])
def test_what_was_saved_loads_whatever_was_set(kind: Any, tmp_path: Path) -> None:
    """Attributes that nobody declared, fields of other projects, and every one of the library's; twice over."""
    config = kind(hidden_size=128)
    own = {"my_note": {"when": ["Tuesday"]}, "window": 4, "attn": {"layers": [0]}, "transformers.js_config": {"a": 1}}
    library = {
        "chunk_size_feed_forward": 2, "problem_type": "regression", "return_dict": False, "output_attentions": True,
        "output_hidden_states": True, "is_encoder_decoder": True, "id2label": {0: "a", 1: "b"}, "tokenizer_class": "T",
        "architectures": ["X"], "quantization_config": {"quant_method": "torchao"}, "unsloth_version": "1",
    }  # fmt: skip
    for name, value in (own | library).items():
        setattr(config, name, value)
    for folder in ("a", "b"):
        config.save_pretrained(tmp_path / folder)
        config = transformers.AutoConfig.from_pretrained(tmp_path / folder)
        assert type(config) is kind
        assert {name: getattr(config, name) for name in own | library} == own | library
    assert read_json(tmp_path / "a" / "config.json")["extra_fields"] == ["attn", "my_note", "window"]
    assert not hasattr(config, "extra_fields")
    assert kind(**config.to_dict()).to_dict() == config.to_dict()
    values = read_json(tmp_path / "a" / "config.json")
    for changes, message in (
        ({"rope_base": 3}, "unknown fields: rope_base.*remove those that do not from config.json"),
        ({"extra_fields": "rope"}, "extra_fields must be a list of names"),
    ):
        write_json(tmp_path / "a" / "config.json", values | changes)
        with pytest.raises(UserError, match=message) as caught:
            transformers.AutoConfig.from_pretrained(tmp_path / "a")
        assert "--ignore" not in str(caught.value)
