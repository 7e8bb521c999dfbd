"""Graphs compute what the model computes, for every option, at every gate; a wrong graph is found."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.export import onnx_folder, verify
from hgrn2.export.config import OnnxConfig, Weights
from hgrn2.export.graph import MICROSOFT, Graph, WeightFile
from hgrn2.export.language import Matrices, _Builder, check_supported, language_graph
from hgrn2.export.runtime import Session
from hgrn2.generate.loading import load
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.ops.hgru2.chunked import gates

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"mixer": MixerConfig(head_size=8)},
    "conv, tied, scaled": {
        "mixer": MixerConfig(head_size=8, conv_width=4, scale_scores=True), "tie_embeddings": True,
        "scale_embeddings": True,
    },
    "hgru2 modules": {
        "mixer": MixerConfig(
            head_size=4, input_activation="silu", output_activation="sigmoid", norm="layer", bias=True
        ),
        "norm": "layer", "glu_activation": "none", "glu_bias": True, "lower_bound": "exclusive",
    },
    "no lower bounds, heads": {"mixer": MixerConfig(head_size=16, norm="head_rms"), "lower_bound": "none"},
    "gelu, simple norms, two taps": {
        "mixer": MixerConfig(head_size=8, conv_width=2, norm="simple_rms", norm_eps=1e-3), "norm": "simple_rms",
        "glu_activation": "gelu",
    },
    "rows that are no whole blocks": {
        "mixer": MixerConfig(head_size=12), "width": 24, "glu_width": 40, "tie_embeddings": True
    },
}  # fmt: skip


def model_of(name: str = "conv, tied, scaled", gain: float = 1.0) -> LanguageModel:
    """A model of three layers; `gain` multiplies gate logits and spreads lower bounds."""
    torch.manual_seed(2)
    model = LanguageModel(ModelConfig(**{"vocab_size": 23, "width": 16, "layers": 3, "glu_width": 24} | OPTIONS[name]))
    with torch.no_grad():
        for block in model.backbone.blocks:
            mixer: Any = block.mixer
            mixer.in_proj.weight[2 * model.config.width :] *= 20 * gain
        if model.backbone.lower_bounds is not None:
            model.backbone.lower_bounds *= 30 * gain
    return model.eval()


def session_of(
    folder: Path, model: LanguageModel, matrices: Matrices, byte_products: bool = False, standard: bool = True
) -> Session:
    with open(folder / "weights", "wb") as stream:
        file = WeightFile(stream, "weights")
        graph = language_graph(model, matrices, file, byte_products=byte_products, standard=standard)
        graph.save(folder / "graph.onnx", "test", "0")
    return Session(folder / "graph.onnx", 1)


@pytest.mark.parametrize("gain", [1.0, 40.0], ids=["usual gates", "gates at both ends"])
@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(tmp_path: Path, name: str, weights: Weights, gain: float) -> None:
    """`verify` raises where logits of any position or a state after pieces and steps miss the float64 model."""
    model = model_of(name, gain)
    config = OnnxConfig(weights=weights, block_size=16)
    matrices = Matrices.of(model, config)
    assert bool(matrices.quantized) == (weights != "float32")
    reference = verify.dequantized(model, matrices)
    verify.verify(session_of(tmp_path, model, matrices), reference)
    checks = verify.verify(session_of(tmp_path, model, matrices, standard=False), reference)
    assert {check.what for check in checks} == {"logits", *(f"state {key}" for key in model.zeros(1).tensors())}
    if config.rounds_activations:
        names = list(matrices.quantized)
        rounding = verify.verify_rounded(session_of(tmp_path, model, matrices, True, False), reference, names, 16)
        assert rounding[0].error > checks[0].error


def test_float32_is_the_model(tmp_path: Path) -> None:
    """Without any helper in between: logits of PyTorch and of the graph, batches of one and three."""
    model = model_of()
    session = session_of(tmp_path, model, Matrices.of(model, OnnxConfig()))
    for batch in (1, 3):
        tokens = torch.randint(23, (batch, 9))
        want, after = model(tokens)
        logits, state = session(tokens.numpy(), session.zeros(batch), keep=0)
        np.testing.assert_allclose(logits, want.detach().numpy(), rtol=0, atol=2e-5 * float(want.detach().abs().max()))
        last, _ = session(tokens.numpy(), session.zeros(batch))
        assert last.shape == (batch, 1, 23)
        np.testing.assert_allclose(last[:, 0], logits[:, -1], rtol=0, atol=1e-5 * float(np.abs(logits).max()))
        assert {f"past.{key}" for key in after.tensors()} == set(state)


@pytest.mark.parametrize("lower_bound", [None, 0.0, 0.3, 1 - 1e-6])
def test_gates_keep_their_precision(tmp_path: Path, lower_bound: float | None) -> None:
    """Key and log f to a few float32 roundings at every logit, where f is near 1 as where it vanishes."""
    logits = torch.cat((torch.linspace(-100, 100, 4001), torch.tensor([-40.0, 40.0, -torch.inf, torch.inf, 0.0])))
    model = model_of()
    with open(tmp_path / "weights", "wb") as stream:
        graph = Graph(WeightFile(stream, "weights"))
        count = len(logits)
        graph.declare(graph.inputs, "x", np.float32, ("batch", "tokens", count))
        per_channel = None if lower_bound is None else torch.full((count,), lower_bound, dtype=torch.float64)
        key, decay = _Builder(model, Matrices({}, {}), graph, 1, MICROSOFT, False)._gates("x", per_channel, "gate")
        for name in (key, decay):
            graph.declare(graph.outputs, name, np.float32, ("batch", "tokens", count))
        graph.save(tmp_path / "gates.onnx", "test", "0")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "gates.onnx"), providers=["CPUExecutionProvider"])
    got_key, got_decay = session.run(None, {"x": logits.numpy()[None, None]})
    expected = gates(logits.double(), None if per_channel is None else per_channel)
    for got, want in ((got_key, expected.key), (got_decay, expected.log_forget)):
        want = want.clamp_min(-60.0).numpy()
        large = np.abs(want) > 1e-36  # below, float32 has no full precision itself
        relative = np.abs(got[0, 0][large] - want[large]) / np.abs(want[large])
        assert relative.max() < 8 * np.finfo(np.float32).eps
        assert np.abs(got[0, 0][~large]).max(initial=0) < 1e-35


@pytest.mark.parametrize("fault", ["lower_bound", "tap", "scale", "state"])
def test_a_wrong_graph_is_found(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small faults, of the kinds that an export makes: each is caught by `verify`."""
    model = model_of()
    matrices = Matrices.of(model, OnnxConfig())
    reference = verify.dequantized(model, matrices)
    with torch.no_grad():
        if fault == "lower_bound":
            assert model.backbone.lower_bounds is not None
            model.backbone.lower_bounds[1] += 1e-4
        elif fault == "tap":
            mixer: Any = model.backbone.blocks[1].mixer
            mixer.conv[:, 2] *= 1 + 1e-4
    if fault == "scale":
        mixer = model.backbone.blocks[0].mixer
        mixer.scale *= 1 + 1e-4
    session = session_of(tmp_path, model, matrices)
    if fault == "state":
        monkeypatch.setattr(session, "outputs", ["logits", *sorted(session.outputs[1:], reverse=True)])
        call, names = session.session.run, list(session.outputs)
        names[1:] = [name.replace("0.", "9.").replace("2.", "0.").replace("9.", "2.") for name in names[1:]]
        monkeypatch.setattr(session, "session", type("", (), {"run": lambda _, __, feed: call(names, feed)})())
    with pytest.raises(UserError, match="wrong and was not kept"):
        verify.verify(session, reference)


def test_a_wrong_graph_leaves_nothing(tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(made(tmp_path / "model"), "cpu")
    monkeypatch.setattr(verify, "_relative", lambda got, want: math.nan)
    with pytest.raises(UserError, match="wrong and was not kept"):
        onnx_folder.write(tmp_path / "out", loaded, OnnxConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("operator", ["auto", "standard", "onnxruntime"])
def test_whose_operators_a_graph_has(tmp_path: Path, made: Any, operator: Any) -> None:
    """float32 graphs are of the standard alone unless asked for otherwise."""
    import onnx

    loaded = load(made(tmp_path / "model"), "cpu")
    for weights in ("float32", "int8"):
        out = tmp_path / weights
        onnx_folder.write(out, loaded, OnnxConfig(weights=weights, operator=operator))
        nodes = onnx.load(str(out / "model.onnx"), load_external_data=False).graph.node
        scans = {node.domain for node in nodes if node.op_type == "LinearAttention"}
        own = operator == "onnxruntime" or (operator == "auto" and weights == "int8")
        assert scans == {"com.microsoft" if own else ""}
        if weights == "float32" and not own:
            assert {node.domain for node in nodes} == {""}


@pytest.mark.parametrize("kind", ["hgru1", "hgru1_real"])
def test_vector_states_are_refused(kind: Any) -> None:
    config = ModelConfig(vocab_size=5, width=8, layers=1, glu_width=8, mixer=MixerConfig(kind=kind))
    with pytest.raises(UserError, match=f"cannot express the vector states of {kind}"):
        check_supported(config)


def test_tied_weights_lie_in_the_file_once(tmp_path: Path) -> None:
    model = model_of()
    for weights, bits in (("float32", 32), ("int8", 8), ("int4", 4)):
        config = OnnxConfig(weights=weights, block_size=16)
        matrices = Matrices.of(model, config)
        with open(tmp_path / weights, "wb") as stream:
            file = WeightFile(stream, weights)
            language_graph(model, matrices, file, byte_products=True)
            whole = set(file.places)
            language_graph(model, matrices, file, byte_products=False)
        assert set(file.places) == whole
        sizes = [size for key, (_, size) in file.places.items() if key.startswith("embedding.weight")]
        assert max(sizes, default=0) in (0, 23 * 16 * bits // 8)
        assert len(sizes) <= 1
