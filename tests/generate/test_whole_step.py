"""The one-token step in C++: held to a float64 model, and what it does not serve goes on as before."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.steps import Steps
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.models.quantize.config import QuantizeConfig
from hgrn2.models.quantize.model import QuantizedEmbedding, QuantizedLinear, quantize
from hgrn2.ops.native.build import library
from hgrn2.ops.native.decode import TokenStep

GREEDY = SamplingConfig(greedy=True)
pytestmark = pytest.mark.skipif(library()[0] is None, reason="no C++ compiler")
TOKENS = (3, 0, 36, 36, 7, 1, 20)
CONFIGS: dict[str, dict[str, Any]] = {
    "published": {"mixer": MixerConfig(head_size=16)},
    "conv, odd heads": {"mixer": MixerConfig(head_size=8, conv_width=4, norm="head_rms", scale_scores=True)},
    "hgru2 modules": {
        "mixer": MixerConfig(
            head_size=24, input_activation="silu", output_activation="sigmoid", norm="simple_rms", conv_width=2
        ),
        "glu_activation": "none",
        "norm": "layer",
        "lower_bound": "none",
        "width": 24,
    },
    "tied, scaled": {"mixer": MixerConfig(head_size=48), "tie_embeddings": True, "scale_embeddings": True},
}


def made(**changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    options = {
        "mixer": MixerConfig(head_size=16),
        "vocab_size": 37,
        "width": 48,
        "layers": 3,
        "glu_width": 53,
        "init": InitConfig(std=0.3),
    } | changes
    model = LanguageModel(ModelConfig(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def run(model: LanguageModel, steps: Steps | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits after each of some tokens, and the state behind them."""
    found, state = [], model.zeros(1)
    with reading(model):
        for token in TOKENS:
            if steps is None:
                logits, after = model(torch.tensor([[token]]), state)
                assert after is not None
                found.append(logits[0, -1].double())
                state = after
            else:
                steps.tokens.fill_(token)
                found.append(steps._logits()[0].double())
    return torch.stack(found), {name: x.double() for name, x in (steps.state if steps else state).tensors().items()}


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_held_to_float64(changes: dict[str, Any]) -> None:
    model = made(**changes)
    steps = Steps(model, 1, GREEDY)
    assert steps.how == "each token is one call of C++"
    (logits, state), (plain, _) = run(model, steps), run(model, None)
    reference, reference_state = run(made(**changes).double(), None)
    assert far(logits, reference) <= max(2 * far(plain, reference), 4e-7)
    assert all(far(state[name], reference_state[name]) < 2e-6 for name in reference_state)


def test_int8_weights_without_rounded_activations() -> None:
    """Closer to the dequantised matrices in float64 than PyTorch's kernel, which rounds activations to bfloat16."""
    changes: dict[str, Any] = {"width": 64, "glu_width": 96, "mixer": MixerConfig(head_size=16)}
    model = quantize(made(**changes), QuantizeConfig(kind="int8"))
    dense = made(**changes).double()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            plain = dense.get_submodule(name)
            assert isinstance(plain, nn.Linear | nn.Embedding)
            plain.weight.data = module.store.dense(torch.float64)
    steps = Steps(model, 1, GREEDY)
    assert steps.how == "each token is one call of C++"
    (logits, _), (rounded, _), (reference, _) = run(model, steps), run(model, None), run(dense, None)
    assert far(logits, reference) < 2e-6 < 1e-4 < far(rounded, reference)


def test_the_same_tokens_and_state_as_call_by_call(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model(mixer="conv")
    steps, plain = Steps(model, 1, GREEDY), Steps(model, 1, GREEDY)
    plain._whole = None
    start = model.zeros(1)
    with reading(model):
        _, start = model.hidden(torch.tensor([[4, 2, 9]]), start)
    assert start is not None
    for one in (steps, plain):
        one.load(start, 5)
    assert [steps.choose() for _ in range(20)] == [plain.choose() for _ in range(20)]
    assert steps.keep([0]) == [0]
    for mine, theirs in zip(steps.snapshot(0).layers, plain.snapshot(0).layers, strict=True):
        torch.testing.assert_close(mine.recurrent, theirs.recurrent, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.conv, theirs.conv, rtol=1e-5, atol=1e-6)


def hooked() -> LanguageModel:
    model = made()
    model.backbone.blocks[1].register_forward_hook(lambda *call: None)
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: made(mixer=MixerConfig(head_size=16, bias=True)), "it has biases"),
        (lambda: made(mixer=MixerConfig(kind="hgru1")), "its mixers are hgru1"),
        (lambda: made(glu_activation="gelu"), "its gated units have gelu"),
        (lambda: made().bfloat16(), "the model is in bfloat16"),
        (hooked, "a block was changed"),
        (lambda: quantize(made(width=64, glu_width=96), QuantizeConfig(kind="int4")), "four bits"),
    ],
)
def test_what_it_does_not_serve(make: Callable[[], LanguageModel], why: str) -> None:
    steps = Steps(make(), 1, GREEDY)
    assert why in steps.how
    assert steps.choose()[0] >= 0


def test_a_wrong_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TokenStep.__call__
    monkeypatch.setattr(TokenStep, "__call__", lambda self, token: right(self, token).mul_(1.01))
    assert "off by 0.01 of the largest logit" in Steps(made(), 1, GREEDY).how
    assert Steps(made(), 2, GREEDY).how == "call by call"
