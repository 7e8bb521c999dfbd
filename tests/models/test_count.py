"""Formulas held to the modules that are really built, and to what papers and checkpoints state."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from small_models import CONFIGS, config_of
from torch.utils.flop_counter import FlopCounterMode

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.count import flops_per_token, parameters, state_bytes
from hgrn2.models.language import LanguageModel
from hgrn2.models.presets import names, preset


def on_meta(config: ModelConfig) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(config)


def every_config() -> dict[str, ModelConfig]:
    """All presets, and small models of every kind of mixer, norm, bias, bound and tying."""
    small = {f"small {name}": config_of(name) for name in CONFIGS}
    return {name: preset(name) for name in names()} | small


@pytest.mark.parametrize("name", every_config())
def test_equals_the_built_model(name: str) -> None:
    config = every_config()[name]
    count, model = parameters(config), on_meta(config)

    def size(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for module in modules if module is not None for p in module.parameters())

    head = () if model.head is None else (model.head,)
    assert count.total == size(model)
    assert count.embedding == size(model.embedding, *head)
    assert count.non_embedding == size(model.backbone)
    assert count.final_norm == size(model.backbone.norm)
    assert count.lower_bounds == (0 if model.backbone.lower_bounds is None else model.backbone.lower_bounds.numel())
    blocks = list(model.backbone.blocks)
    assert count.mixers == size(*(part for block in blocks for part in (block.mixer, block.mixer_norm)))
    assert count.glus == size(*(part for block in blocks for part in (block.glu, block.glu_norm)))


@pytest.mark.parametrize(
    ("name", "total", "tensors"),
    [
        ("hgrn2_1.3b", 1_364_396_032, 244),  # audit of the published file
        ("hgrn2_2.7b", 2_701_724_160, 324),
        ("hgrn2_340m", 373_916_672, 244),
    ],
)
def test_published_checkpoints(name: str, total: int, tensors: int) -> None:
    """Their layout keeps q, f and i apart, which ours has as one matrix (+2 a layer), and the GLU's two (+1)."""
    config = preset(name)
    assert parameters(config).total == total
    assert len(list(on_meta(config).parameters())) + (2 + 1) * config.layers == tensors


@pytest.mark.parametrize("size", ["1.3b", "2.7b"])
def test_real_hgrn1_of_the_hub_is_as_large_as_hgrn2(size: str) -> None:
    """Four maps of D² in both: i, f, g, o beside q, f, i, o."""
    assert parameters(preset(f"hgrn1_{size}")) == parameters(preset(f"hgrn2_{size}"))


@pytest.mark.parametrize(
    ("size", "millions", "reported"),
    [
        ("70m", 20.45, 20.5),
        ("160m", 84.94, 84.9),
        ("410m", 334.00, 334.0),
        ("1b", 906.02, 906.0),
        ("3b", 2775.54, 2775.5),
        ("7b", 6476.14, 6476.1),
    ],
)
def test_scaling_laws_counts_without_embeddings(size: str, millions: float, reported: float) -> None:
    """arXiv 2406.16690: only bounds counted and norms without weights give all six printed values."""
    config = preset(f"hgrn2_{size}")
    count = parameters(config).non_embedding
    assert round(count / 1e6, 2) == millions
    assert round(count / 1e6, 1) == reported


def test_scaling_laws_counts_exclude_the_other_readings() -> None:
    """Weights in the norms, no bounds, or the printed hidden width of the 1B row would contradict the paper."""
    with_weights = parameters(preset("hgrn2_7b", norm="rms", mixer=MixerConfig(head_size=128))).non_embedding
    without_lower_bounds = parameters(preset("hgrn2_7b", lower_bound="none")).non_embedding
    assert {round(n / 1e6, 1) for n in (with_weights, without_lower_bounds)} == {6476.5, 6476.0}
    assert round(parameters(preset("hgrn2_1b", glu_width=5632)).non_embedding / 1e6, 1) == 1132.5


@pytest.mark.parametrize(
    ("name", "changes", "millions"),
    [
        ("hgrn1_44m_wikitext103", {}, 46.25),
        ("hgrn2_44m_wikitext103", {}, 44.66),
        ("hgrn2_44m_wikitext103", {"glu_width": 1024}, 41.51),
    ],
)
def test_wikitext103_counts(name: str, changes: dict[str, Any], millions: float) -> None:
    """Biases, LayerNorm and tied embeddings, all needed: each left out moves the second decimal."""
    assert round(parameters(preset(name, **changes)).total / 1e6, 2) == millions


def test_babyhgrn_is_not_what_it_is_called() -> None:
    """arXiv 2412.15978 describes D 2048, L 18, vocabulary 16000 as 330 M; the shape has 990 M."""
    assert round(parameters(preset("hgrn2_1.3b", layers=18, vocab_size=16000)).total / 1e6) == 991


@pytest.mark.parametrize("name", ["hgrn2_340m", "hgrn1_150m", "hgrn1_1.3b", "small hgru2 modules", "small hgru1"])
def test_matrix_products_equal_those_that_run(name: str) -> None:
    """PyTorch counts the products of a real forward and backward; scan and convolution are not products there."""
    config = every_config()[name]
    width, tokens = config.width, 4
    scan = {"hgru2": 5 * width * config.mixer.head_size, "hgru1_real": 3 * width, "hgru1": 10 * width}
    products = flops_per_token(config, training=False) - config.layers * scan[config.mixer.kind]
    model, ids = on_meta(config), torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(ids, output_state=False)
    assert counter.get_total_flops() == products * tokens
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == 2 * products * tokens


class Counted:
    """A number that counts the real multiplications and additions made of it."""

    def __init__(self, tally: Counter[str]) -> None:
        self.tally = tally

    def __mul__(self, other: "Counted") -> "Counted":
        self.tally["×"] += 1
        return self

    def __add__(self, other: "Counted") -> "Counted":
        self.tally["+"] += 1
        return self

    __sub__ = __add__


def recurrence(kind: str, width: int, n: int) -> int:
    """Operations of one token, made one by one: gates, keys, values and outputs are given."""
    tally: Counter[str] = Counter()
    x = Counted(tally)
    if kind == "hgru2":
        for _ in range(width // n):
            read = [x] * n
            for _ in range(n):
                for column in range(n):
                    state = x * x + x * x  # f S + k i
                    read[column] = read[column] + x * state
    else:
        for _ in range(width):
            if kind == "hgru1":
                rotated = (x * x - x * x, x * x + x * x)
                assert all(part + x * x for part in rotated)
            else:
                assert x * x + x * x
    return tally.total()


@pytest.mark.parametrize(("kind", "n"), [("hgru2", 4), ("hgru2", 12), ("hgru1", 12), ("hgru1_real", 12)])
def test_scan_equals_the_recurrence_made_number_by_number(kind: Any, n: int) -> None:
    config = ModelConfig(vocab_size=7, width=12, layers=2, glu_width=5, mixer=MixerConfig(kind=kind, head_size=n))
    matrices = 2 * ((7 if kind == "hgru1" else 4) * 144 + 3 * 12 * 5) + 7 * 12
    assert flops_per_token(config, training=False) == 2 * matrices + 2 * recurrence(kind, 12, n)


def test_training_convolution_and_tying() -> None:
    config = config_of("hgru2")
    forward = flops_per_token(config, training=False)
    assert flops_per_token(config, training=True) == 3 * forward
    tied = dataclasses.replace(config, tie_embeddings=True)
    assert flops_per_token(tied, training=False) == forward
    wide = dataclasses.replace(config, mixer=MixerConfig(head_size=8, conv_width=4))
    assert flops_per_token(wide, training=False) - forward == 3 * (3 * 16 * 4) * 2


def test_large_models_cost_two_operations_a_weight() -> None:
    """The usual estimate, and how far the scan takes it: below 3% at 7B."""
    config = preset("hgrn2_7b")
    assert 1 <= flops_per_token(config, training=False) / (2 * parameters(config).total) < 1.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_state_bytes_equal_the_state_made(name: str, dtype: torch.dtype) -> None:
    config = config_of(name)
    model = LanguageModel(config).to(dtype)
    assert state_bytes(config, str(dtype)) == state_bytes(config, str(dtype).removeprefix("torch."))
    assert model.zeros(5).nbytes == 5 * state_bytes(config, str(dtype))


def test_state_of_the_1_3b_model() -> None:
    """24 layers of 2048 × 128 numbers: 25.2 MB per sequence, whatever its length."""
    assert state_bytes(preset("hgrn2_1.3b")) == 24 * 2048 * 128 * 4 == 25_165_824
