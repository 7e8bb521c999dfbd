"""Quantised models compute what the same model with the dequantised weights computes."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from small_models import HGRN
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.steps import Steps
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.quantize import weights
from hgrn2.models.quantize.config import Quantization, QuantizeConfig
from hgrn2.models.quantize.model import (
    QuantizedEmbedding,
    QuantizedLanguageModel,
    QuantizedLinear,
    fallback_lines,
    quantize,
    weight_bytes,
)  # fmt: skip
from hgrn2.models.quantize.weights import Int4, Int8
from hgrn2.models.saved import model_hash

KINDS = get_args(Quantization)
SIZES = {"width": 64, "glu_width": 96, "layers": 2}
LONG = max(weights.FEW_ROWS.values()) + 6  # tokens that are read by dequantising


def config(kind: Quantization) -> QuantizeConfig:
    return QuantizeConfig(kind=kind)


def dequantized(model: QuantizedLanguageModel) -> LanguageModel:
    """A plain model of the same weights."""
    plain = LanguageModel(model.config).eval()
    found = {name: tensor for name, tensor in model.state_dict().items() if name != "quantized"}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            found[f"{name}.weight"] = module.weight
    plain.load_state_dict(found)
    return plain


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def one_by_one(model: LanguageModel, tokens: Tensor, state: ModelState | None = None) -> Tensor:
    state, made = state or model.zeros(len(tokens)), []
    for token in tokens.split(1, 1):
        logits, state = model(token, state)
        made.append(logits)
    return torch.cat(made, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HGRN)
@torch.inference_mode()
def test_equals_the_model_with_dequantised_weights(
    name: str, kind: Quantization, make: Callable[..., LanguageModel], tokens: Callable[..., Tensor]
) -> None:
    model = quantize(make(name, **SIZES), config(kind))
    assert model.fallbacks == {}
    plain = dequantized(model)
    exact = dequantized(model).double()
    text = tokens(1, LONG)
    expected = exact(text)[0]
    assert error(model(text)[0], expected) <= 4 * error(plain(text)[0], expected) + 1e-6
    # Few rows go through kernels which round activations to bfloat16, as a model in bfloat16 rounds its own.
    few, half = text[:, :9], dequantized(model).bfloat16()
    expected = one_by_one(exact, few)
    assert error(one_by_one(model, few), expected) <= error(one_by_one(half, few), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, LONG])
@pytest.mark.parametrize(("outputs", "inputs"), [(65, 64), (16, 32), (200, 96), (1, 160)])
@torch.inference_mode()
def test_products(kind: Quantization, rows: int, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PART", 1 << 10)  # so that small matrices are dequantised in several parts
    generator = torch.Generator().manual_seed(rows + outputs)
    weight, x = (torch.randn(n, inputs, generator=generator) for n in (outputs, rows))
    store = Int8(weight) if kind == "int8" else Int4(weight, 32)
    assert store.why == ""
    dense = store.dense(torch.float32)
    assert dense.shape == weight.shape
    assert error(dense, weight) < (0.01 if kind == "int8" else 0.1)
    exact = x.double() @ dense.double().T
    few = rows <= weights.FEW_ROWS[kind]
    assert error(store.product(x), exact) < (2**-7 if few else 1e-6)  # two roundings to bfloat16, 2^-9 each at most


def test_levels_are_the_nearest() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    eight, four = Int8(weight), Int4(weight, 32)
    step = eight.scale.float().unsqueeze(1)
    ends = 127 * step  # the scale is rounded to bfloat16, so the largest weight may lie a little outside
    inside = weight.abs() <= ends
    assert inside.float().mean() > 0.95
    assert bool(((eight.dense(torch.float32) - weight).abs() <= step / 2 + 1e-6)[inside].all())
    step = four.scale_zero[..., 0].float().T.repeat_interleave(32, 1)
    missed = (four.dense(torch.float32) - weight).abs() > step / 2 + 1e-6
    assert missed.float().mean() < 0.05
    assert bool(((four.dense(torch.float32) - weight).abs() <= step).all())


@pytest.mark.parametrize("inputs", [1, 16, 24, 33, 72])
def test_odd_inputs_are_not_given_to_the_kernel(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read past the end of rows."""
    monkeypatch.setattr(Int8, "kernel", lambda self, x: pytest.fail("called"))
    weight, x = torch.randn(20, inputs), torch.randn(2, inputs)
    store = Int8(weight)
    assert store.why == f"{inputs} inputs are no multiple of 32"
    assert error(store.product(x), x.double() @ store.dense(torch.float64).T) < 1e-6
    assert Int4(weight, 32).why == f"{inputs} inputs do not divide into groups of 32"


@torch.inference_mode()
def test_take_and_shared_table(make: Callable[..., LanguageModel], tokens: Callable[..., Tensor]) -> None:
    model = quantize(make("hgru2 conv", **SIZES), config("int4"))
    assert isinstance(model.embedding, QuantizedEmbedding)
    assert model.head is None
    text = tokens(2, 5)
    assert torch.equal(model.embedding(text), model.embedding.weight[text])


def test_sizes_that_do_not_fit_are_told(make: Callable[..., LanguageModel], tokens: Callable[..., Tensor]) -> None:
    model = quantize(make("hgru2", width=48, layers=1, glu_width=96), config("int4"))
    assert len(model.fallbacks) == 4
    first, second = fallback_lines(model)
    assert first == (
        "backbone.blocks.0.mixer.in_proj and 2 more: int8, dequantised at every call: "
        "48 inputs do not divide into groups of 32"
    )
    assert second == "head: dequantised at every call: 48 inputs are no multiple of 32"
    with torch.inference_mode():
        text = tokens(1, LONG)
        assert error(model(text)[0], dequantized(model)(text)[0]) < 1e-5


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_kernel_that_fails_or_is_wrong_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch, make: Callable[..., LanguageModel], tokens: Callable[..., Tensor]
) -> None:
    def broken(self: Int8, x: Tensor) -> Tensor:
        if fault == "missing":
            raise NotImplementedError("no such kernel\nmore")
        return x.new_full((len(x), self.rows), torch.nan)

    monkeypatch.setattr(Int8, "kernel", broken)
    model = quantize(make("hgru2", **SIZES), config("int8"))
    assert "embedding" not in model.fallbacks  # only looked up
    assert "head" in model.fallbacks
    (line,) = fallback_lines(model)
    assert ("no such kernel" if fault == "missing" else "computes something else") in line
    with torch.inference_mode():
        text = tokens(1, 5)
        assert error(one_by_one(model, text), one_by_one(dequantized(model), text)) < 1e-5


def test_memory(make: Callable[..., LanguageModel]) -> None:
    before = weight_bytes(make("hgru2", **SIZES))
    matrices = sum(
        module.weight.nbytes for module in make("hgru2", **SIZES).modules() if hasattr(module, "in_features")
    )
    after = {kind: weight_bytes(quantize(make("hgru2", **SIZES), config(kind))) for kind in KINDS}
    assert after["int8"] < before - 0.7 * matrices
    # 4 bits and 32 of scale and zero for 32 weights: 5 bits per weight, and the head keeps 8
    assert after["int4"] < before - 0.8 * matrices


def test_hash_tells_kinds_and_weights_apart(make: Callable[..., LanguageModel]) -> None:
    made = [make("hgru2", **SIZES), *(quantize(make("hgru2", **SIZES), config(kind)) for kind in KINDS)]
    made.append(quantize(make("hgru2", seed=1, **SIZES), config("int8")))
    made.append(quantize(make("hgru2", **SIZES), QuantizeConfig(kind="int4", group=64)))
    assert len({model_hash(model) for model in made}) == len(made)
    assert model_hash(quantize(make("hgru2", **SIZES), config("int4"))) == model_hash(made[2])


def test_refusals(make: Callable[..., LanguageModel]) -> None:
    with pytest.raises(UserError, match="kind is 'int3'; choose one of: int8, int4"):
        QuantizeConfig(kind="int3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="in float64 cannot be quantised"):
        quantize(make("hgru2").double())
    model = quantize(make("hgru2"))
    with pytest.raises(UserError, match="QuantizedLanguageModel cannot be quantised"):
        quantize(model)
    with pytest.raises(UserError, match="cannot be trained"):
        model.train()
    with pytest.raises(UserError, match="stays where it was made"):
        model.bfloat16()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_on_a_gpu_call_by_call_and_as_a_graph(
    kind: Quantization, dtype: torch.dtype, make: Callable[..., LanguageModel], tokens: Callable[..., Tensor]
) -> None:
    sizes = {"width": 256, "glu_width": 512, "layers": 2}
    model = quantize(make("hgru2", **sizes).to("cuda", dtype), config(kind))
    print(kind, dtype, fallback_lines(model))
    exact = dequantized(model).double().to("cuda")
    half = dequantized(model).bfloat16().to("cuda")
    text = tokens(1, LONG).cuda()
    for run in (lambda m: m(text)[0], lambda m: one_by_one(m, text[:, :9])):
        assert error(run(model), run(exact)) <= 2 * error(run(half), run(exact))
    chosen = []
    for graph in (False, True):
        steps = Steps(model, 1, SamplingConfig(greedy=True), graph=graph)
        steps.load(model.zeros(1), 3)
        chosen.append([steps.choose()[0] for _ in range(8)])
    assert chosen[0] == chosen[1]
