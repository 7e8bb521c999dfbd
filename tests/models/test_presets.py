"""Every preset makes a configuration that holds together; names are exact and a wrong one is answered helpfully."""

import dataclasses
import subprocess
import sys

import pytest

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.presets import names, preset
from hgrn2.settings import from_dict, to_dict

PROMISED = {
    *(f"hgrn2_{size}" for size in ("demo", "44m_wikitext103", "70m", "160m", "340m", "410m", "1b", "1.3b")),
    *(f"hgrn2_{size}" for size in ("2.7b", "3b", "7b")),
    *(f"hgrn1_{size}" for size in ("44m_wikitext103", "150m", "1.3b", "2.7b")),
}


def test_the_promised_names() -> None:
    assert set(names()) == PROMISED
    assert len(names()) == len(set(names()))


@pytest.mark.parametrize("name", names())
def test_makes_a_configuration_that_survives_json(name: str) -> None:
    config = preset(name)
    assert isinstance(config, ModelConfig)
    assert preset(name) == config
    assert from_dict(ModelConfig, to_dict(config)) == config


@pytest.mark.parametrize("name", names())
def test_the_name_says_the_unit(name: str) -> None:
    kind = preset(name).mixer.kind
    assert kind == "hgru2" if name.startswith("hgrn2") else kind in ("hgru1", "hgru1_real")


@pytest.mark.parametrize(
    ("name", "layers", "width", "glu_width", "vocab_size", "head_size"),
    [
        ("hgrn2_demo", 4, 192, 512, 65, 32),
        ("hgrn2_44m_wikitext103", 6, 512, 1365, 50265, 128),
        ("hgrn2_70m", 6, 512, 1536, 100280, 128),
        ("hgrn2_160m", 12, 768, 2048, 100280, 128),
        ("hgrn2_410m", 26, 1024, 2816, 100280, 128),
        ("hgrn2_1b", 32, 1536, 4096, 100280, 128),
        ("hgrn2_3b", 35, 2560, 6912, 100280, 128),
        ("hgrn2_7b", 32, 4096, 11008, 100280, 128),
        ("hgrn2_340m", 24, 1024, 2816, 32000, 128),
        ("hgrn2_1.3b", 24, 2048, 5632, 32000, 128),
        ("hgrn2_2.7b", 32, 2560, 6912, 32000, 128),
        ("hgrn1_44m_wikitext103", 6, 512, 1024, 50265, None),
        ("hgrn1_150m", 14, 768, 1536, 50272, None),
        ("hgrn1_1.3b", 24, 2048, 5632, 32000, None),
        ("hgrn1_2.7b", 32, 2560, 6912, 32000, None),
    ],
)
def test_shapes(name: str, layers: int, width: int, glu_width: int, vocab_size: int, head_size: int | None) -> None:
    config = preset(name)
    assert (config.layers, config.width, config.glu_width, config.vocab_size) == (layers, width, glu_width, vocab_size)
    assert head_size is None or config.mixer.head_size == head_size


def test_published_options() -> None:
    """What a checkpoint of each family depends on beside its shapes."""
    fla = preset("hgrn2_1.3b")
    assert (fla.mixer.scale_scores, fla.mixer.norm_eps, fla.norm_eps, fla.glu_activation) == (True, 1e-5, 1e-6, "silu")
    assert not fla.tie_embeddings
    assert fla.lower_bound == "inclusive"
    real = preset("hgrn1_1.3b")
    assert (real.mixer.kind, real.mixer.input_activation, real.mixer.norm_eps) == ("hgru1_real", "silu", 1e-6)
    for name in ("hgrn1_44m_wikitext103", "hgrn1_150m"):
        assert (preset(name).mixer.kind, preset(name).mixer.norm, preset(name).tie_embeddings) == (
            "hgru1",
            "layer",
            True,
        )


def test_overrides_replace_fields() -> None:
    base = preset("hgrn2_70m")
    changed = preset("hgrn2_70m", vocab_size=300, mixer=MixerConfig(head_size=64))
    assert (changed.vocab_size, changed.heads) == (300, 8)
    assert dataclasses.replace(changed, vocab_size=base.vocab_size, mixer=base.mixer) == base
    assert preset("hgrn2_70m") == base


def test_overrides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"no setting depth, wdth; it has: width, layers, mixer"):
        preset("hgrn2_70m", wdth=4, depth=3)
    with pytest.raises(UserError, match="width 500 does not divide into heads of head_size 128"):
        preset("hgrn2_70m", width=500)


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("1.3b", "hgrn2_1.3b or hgrn1_1.3b"),
        ("hgrn2_1.3B", "hgrn2_1.3b"),
        ("HGRN2-340M", "hgrn2_340m"),
        ("hgrn2_13b", "hgrn2_1.3b"),
        ("demo", "hgrn2_demo"),
        ("hgrn2_44m_wikitext", "hgrn2_44m_wikitext103"),
        ("hgrn1_46m_wikitext103", "hgrn1_44m_wikitext103"),
    ],
)
def test_a_wrong_name_is_answered_with_the_near_ones_and_all(asked: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        preset(asked)
    message = str(caught.value)
    assert "\n" not in message
    assert f"there is no preset '{asked}'; did you mean {near}" in message
    assert message.endswith(f"(choose from {', '.join(names())})")


def test_a_name_like_no_other_gets_the_list_alone() -> None:
    with pytest.raises(UserError, match=r"there is no preset 'llama' \(choose from hgrn2_demo, "):
        preset("llama")


def test_neither_presets_nor_counts_load_torch() -> None:
    code = (
        "import sys; from hgrn2.models import count, presets;"
        "count.parameters(presets.preset('hgrn2_7b')); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
