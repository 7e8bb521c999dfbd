"""An exported folder, whole or absent: graph, weights, tokenizer, and a manifest written after everything was checked.

model.onnx         the graph; small constants inside
model.onnx.data    the weights, whatever their size: onnxruntime maps them from the file
tokenizer/         as `Tokenizer.save` writes it, where the model has one
manifest.json      settings, inputs and outputs, versions, what the checks found, bytes and sha256 of each file
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn2 import __version__
from hgrn2.export import cost
from hgrn2.export.config import OnnxConfig
from hgrn2.export.graph import OPSET, WeightFile, onnx_library
from hgrn2.export.language import Matrices, check_supported, language_graph, state_shapes
from hgrn2.export.runtime import Session, runtime_library
from hgrn2.export.verify import Check, dequantized, verify, verify_rounded
from hgrn2.files import atomic_folder, sha256, write_json
from hgrn2.generate.loading import Loaded
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import reported
from hgrn2.progress import Progress, silent
from hgrn2.settings import to_dict

FORMAT, KIND = 1, "hgrn2-onnx"
GRAPH, WEIGHTS, MANIFEST, TOKENIZER = "model.onnx", "model.onnx.data", "manifest.json", "tokenizer"
EXACT = ".exact.onnx"  # the graph without rounded activations, for the check; it does not stay

STAGES = ("rounding weights", "writing the graph", "checking it against PyTorch", "measuring the cost on text")


@dataclass(frozen=True)
class Text:
    """What the cost in prediction is measured on."""

    path: Path
    split: str
    limit: int


@dataclass(frozen=True)
class Export:
    """What was written."""

    checks: list[Check]
    rounding: list[Check]
    """Of 8-bit activations; empty where none are rounded."""
    cost: cost.Cost | None
    bytes: dict[str, int]


def write(
    out: Path, loaded: Loaded, config: OnnxConfig, text: Text | None = None, progress: Progress = silent
) -> Export:
    """Export a model into a folder that does not exist yet.

    Args:
        out: the folder.
        loaded: the model, hgru2 only, and its tokenizer.
        config: what the matrices are held in.
        text: measure perplexity of graph and model on it; None leaves that out.
        progress: told the stage, and how many of all are done.

    Raises:
        UserError: onnx or onnxruntime missing, a model that LinearAttention cannot express, a graph that misses the
            float64 reference, a place that cannot be written. Nothing is left behind.
    """
    onnx_library()
    runtime_library()
    check_supported(loaded.model.config)
    corpus = None if text is None else cost.open_text(text.path, text.split, loaded)
    with reported(out), atomic_folder(out) as folder:
        checks, rounding = checked_graph(folder, loaded.model, config, lambda n: progress(STAGES[n], n, len(STAGES)))
        found = None
        if text is not None and corpus is not None:
            progress(STAGES[3], 3, len(STAGES))
            found = cost.measure(Session(folder / GRAPH), loaded, corpus, text.limit)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save(folder / TOKENIZER)
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        export = Export(checks, rounding, found, {name: path.stat().st_size for name, path in files.items()})
        write_json(folder / MANIFEST, {
            **_manifest(loaded, config, export),
            "files": {name: {"bytes": export.bytes[name], "sha256": sha256(path)} for name, path in files.items()},
        })  # fmt: skip
    return export


def checked_graph(
    folder: Path, model: LanguageModel, config: OnnxConfig, tell: Callable[[int], None], *,
    opset: int = OPSET, gates: bool = False,
) -> tuple[list[Check], list[Check]]:  # fmt: skip
    """Write graph and weights into a folder and hold them to the float64 model: (checks, those of rounded activations).

    Args:
        tell: told the number of the stage that begins.
        opset: see `Graph.save`.
        gates: see `language_graph`.

    Raises:
        UserError: the graph misses the reference.
    """
    tell(0)
    matrices = Matrices.of(model, config)
    tell(1)
    _write_graphs(folder, model, matrices, config, opset, gates)
    tell(2)
    checks = _check(folder, model, matrices, config)
    (folder / EXACT).unlink(missing_ok=True)
    return checks


def _write_graphs(
    folder: Path, model: LanguageModel, matrices: Matrices, config: OnnxConfig, opset: int, gates: bool
) -> None:
    with open(folder / WEIGHTS, "wb", buffering=0) as stream:
        file = WeightFile(stream, WEIGHTS)
        options = {"standard": config.standard, "gates": gates}
        graphs = {GRAPH: language_graph(model, matrices, file, byte_products=config.rounds_activations, **options)}
        if config.rounds_activations:
            graphs[EXACT] = language_graph(model, matrices, file, byte_products=False, **options)
    for name, graph in graphs.items():
        graph.save(folder / name, "hgrn2", __version__, opset)


def _check(
    folder: Path, model: LanguageModel, matrices: Matrices, config: OnnxConfig
) -> tuple[list[Check], list[Check]]:
    reference = dequantized(model, matrices)
    if not config.rounds_activations:
        return verify(Session(folder / GRAPH), reference), []
    checks = verify(Session(folder / EXACT), reference)
    return checks, verify_rounded(Session(folder / GRAPH), reference, list(matrices.quantized), config.block_size)


def _manifest(loaded: Loaded, config: OnnxConfig, export: Export) -> dict[str, Any]:
    model = loaded.model.config
    states = {name: ["batch", *shape] for name, shape in state_shapes(model).items()}
    inputs = {"tokens": ("int64", ["batch", "tokens"]), "logits_to_keep": ("int64", [1])}
    inputs |= {f"past.{name}": ("float32", shape) for name, shape in states.items()}
    outputs = {"logits": ("float32", ["batch", "kept", model.vocab_size])}
    outputs |= {f"present.{name}": ("float32", shape) for name, shape in states.items()}
    return {
        "format": FORMAT,
        "kind": KIND,
        "graph": GRAPH,
        "source": loaded.name,
        "model": to_dict(model),
        "export": to_dict(config),
        "vocab_size": model.vocab_size,
        "tokenizer": None if loaded.tokenizer is None else loaded.tokenizer.identity(),
        "inputs": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in inputs.items()},
        "outputs": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in outputs.items()},
        "versions": {
            "hgrn2": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "onnx": onnx_library().__version__,
            "onnxruntime": runtime_library().__version__,
            "opset": OPSET,
        },
        "checks": [asdict(check) for check in export.checks],
        "checks_of_rounded_activations": [asdict(check) for check in export.rounding],
        "cost": None if export.cost is None else export.cost.as_json(),
    }
