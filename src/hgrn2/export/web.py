"""A model as a folder of files that a browser runs alone: the page of `hgrn2 serve`, an ONNX graph, onnxruntime-web.

index.html, *.css, *.js, local/    the page, as it comes with the package
model.onnx, model.onnx.data        graph and weights; the graph has the forget gates as outputs, too
runtime/                           onnxruntime-web
model.json                         sizes, tokenizer, hashes, versions: what the page reads first
sw.js                              keeps all of it for a browser without network
"""

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hgrn2 import __version__
from hgrn2.export.config import PAGE_POLICY, OnnxConfig
from hgrn2.export.graph import onnx_library
from hgrn2.export.language import check_supported, state_shapes
from hgrn2.export.onnx_folder import GRAPH, STAGES, WEIGHTS, checked_graph
from hgrn2.export.runtime import runtime_library
from hgrn2.export.verify import Check
from hgrn2.export.web_runtime import PACKAGE, VERSION, fetch_runtime
from hgrn2.export.web_tokenizer import VOCABULARY, described
from hgrn2.files import atomic_folder, sha256, write_json, write_text
from hgrn2.generate.loading import Loaded
from hgrn2.models.saved import model_hash, reported
from hgrn2.progress import Progress, silent

OPSET = 23
"""Stamped on the graph: the first with every operator in it, and no higher than onnxruntime-web takes."""
FORMAT, MODEL, RUNTIME, PAGE, WORKER = "hgrn2-web-1", "model.json", "runtime", "index.html", "sw.js"
SERVER, LOCAL = '<meta name="hgrn2-engine" content="server">', '<meta name="hgrn2-engine" content="browser">'
VERSION_MARK = "@VERSION@"


@dataclass(frozen=True)
class WebExport:
    """What was written."""

    checks: list[Check]
    rounding: list[Check]
    """Of 8-bit activations; empty where none are rounded."""
    bytes: dict[str, int]


def write(
    out: Path, loaded: Loaded, config: OnnxConfig, runtime: Path | None = None, progress: Progress = silent
) -> WebExport:
    """Export a model into a folder that does not exist yet.

    Args:
        out: the folder.
        loaded: an hgru2 model with a tokenizer that `described` takes.
        config: what the matrices are held in; the operator is onnxruntime's.
        runtime: a folder with the files of onnxruntime-web; None asks npm.
        progress: told the stage, and how many of all are done.

    Raises:
        UserError: as `onnx_folder.write`; a tokenizer that the page does not have, no runtime files.
    """
    stages = ("fetching onnxruntime-web", *STAGES[:3])
    onnx_library()
    runtime_library()
    check_supported(loaded.model.config)
    tokenizer = loaded.need_tokenizer()
    known, vocabulary = described(tokenizer)
    with reported(out), atomic_folder(out) as folder:
        progress(stages[0], 0, len(stages))
        (folder / RUNTIME).mkdir()
        fetch_runtime(folder / RUNTIME, runtime)
        checks, rounding = checked_graph(
            folder, loaded.model, config, lambda n: progress(stages[n + 1], n + 1, len(stages)), opset=OPSET, gates=True
        )
        _copy_page(folder)
        if vocabulary is not None:
            write_json(folder / VOCABULARY, vocabulary)
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        listed = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in found.items()}
        write_json(folder / MODEL, {**_model(loaded, config), "tokenizer": known, "files": listed})
        _keep_offline(folder)
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
    return WebExport(checks, rounding, sizes)


def _model(loaded: Loaded, config: OnnxConfig) -> dict[str, Any]:
    model = loaded.model.config
    run = loaded.found.run
    return {
        "format": FORMAT,
        "name": (run or loaded.found.folder).resolve().name,
        "step": loaded.found.step,
        "example": loaded.example(),
        "graph": GRAPH,
        "weights": WEIGHTS,
        "precision": config.weights,
        "vocab_size": model.vocab_size,
        "layers": [
            {"kind": "hgru2", "heads": model.heads, "head_size": model.mixer.head_size} for _ in range(model.layers)
        ],
        "states": {name: list(shape) for name, shape in state_shapes(model).items()},
        "model_hash": model_hash(loaded.model),
        "dtype": str(loaded.model.embedding.weight.dtype).removeprefix("torch."),
        "versions": {"hgrn2": __version__, PACKAGE: VERSION, "opset": OPSET},
    }


def _copy_page(folder: Path) -> None:
    """The page's files; its first one says that the model is in the browser."""
    with_page = files("hgrn2").joinpath("serve", "static")
    for path in sorted(Path(str(with_page)).rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(str(with_page))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    text = (folder / PAGE).read_text(encoding="utf-8")
    assert SERVER in text
    policy = f'{LOCAL}\n<meta http-equiv="Content-Security-Policy" content="{PAGE_POLICY}">'
    write_text(folder / PAGE, text.replace(SERVER, policy))


def _keep_offline(folder: Path) -> None:
    """The version of what is kept is that of all files: another export replaces it."""
    text = (folder / WORKER).read_text(encoding="utf-8")
    assert VERSION_MARK in text
    write_text(folder / WORKER, text.replace(VERSION_MARK, sha256(folder / MODEL)[:16]))
