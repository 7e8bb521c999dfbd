"""Decoding speed of a saved model on the CPU: PyTorch's generate loop beside onnxruntime on exports of it.

One sequence, greedy, after the same prompt. All models of one thread count take turns in one process. An export is
verified before it is measured, as every export is.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn2.bench.onnx_settings import OnnxBench
from hgrn2.bench.settings import Limits
from hgrn2.bench.timing import Sample, interleave, prepare_process
from hgrn2.export import onnx_folder
from hgrn2.export.config import OnnxConfig
from hgrn2.export.runtime import Session, runtime_library
from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.loading import Loaded
from hgrn2.generate.steps import Steps
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement

BENCH = "onnx"
Key = tuple[str, str]
"""Weights and operator of an export."""
PLAIN: Key = ("float32", "torch")
PREFILLS = 3  # of which the median is given


@dataclass(frozen=True)
class _Ready:
    """A model that has read its prompt."""

    decode: Callable[[], tuple[list[float], list[int]]]
    """Seconds and id of every step."""
    prefill_seconds: float
    model_bytes: int


def measure(loaded: Loaded, bench: OnnxBench, record: Callable[[Row], None], progress: Progress = silent) -> None:
    """Measure a model in PyTorch and in every export asked for; rows go to `record`, one per model and thread count."""
    runtime_library()
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="hgrn2-onnx-") as folder:
        folders: dict[Key, Path] = {}
        for key in itertools.product(bench.weights, bench.operators):
            weights, operator = key
            progress(f"exporting {weights}, {operator}", len(folders), len(bench.weights) * len(bench.operators))
            config = OnnxConfig(
                weights=weights, block_size=bench.block_size, activations=bench.activations, operator=operator
            )
            folders[key] = Path(folder) / f"{weights}-{operator}"
            onnx_folder.write(folders[key], loaded, config)
        try:
            for threads in bench.threads:
                _with_threads(loaded, bench, folders, threads, record, progress)
        finally:
            torch.set_num_threads(before)


def _with_threads(
    loaded: Loaded, bench: OnnxBench, folders: dict[Key, Path], threads: int, record: Callable[[Row], None],
    progress: Progress,
) -> None:  # fmt: skip
    limits = Limits(threads=threads, repeats=bench.repeats)
    conditions = prepare_process(limits)
    model = loaded.model
    generator = torch.Generator().manual_seed(bench.seed)
    prompt = torch.randint(model.config.vocab_size, (1, bench.context), generator=generator)
    ready: dict[Key, _Ready] = {PLAIN: _in_torch(model, prompt, bench.tokens)}
    for key, folder in folders.items():
        ready[key] = _exported(Session(folder / onnx_folder.GRAPH, threads), folder, prompt, bench.tokens)
    wanted = ready[PLAIN].decode()[1]
    agreement = {key: _agreeing(one.decode()[1], wanted) for key, one in ready.items()}
    samples: dict[Key, Sample] = {key: _sample(one) for key, one in ready.items()}
    taken = interleave(samples, limits, f"decoding, {threads} threads", progress)
    for key, one in ready.items():
        weights, operator = key
        name, backend = ("hgrn2", "torch") if key == PLAIN else (f"onnx-{weights}", operator)
        details = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "state_bytes": model.zeros(1).nbytes,
            "model_bytes": one.model_bytes,
            "prefill_seconds": round(one.prefill_seconds, 4),
            "same_tokens_as_torch": agreement[key],
            "onnxruntime": runtime_library().__version__,
            **conditions,
        }
        speeds = [1 / seconds for seconds in taken[key]]
        record(measurement(BENCH, _case(loaded, bench, threads), name, backend, speeds, "tokens/s", details))


def _case(loaded: Loaded, bench: OnnxBench, threads: int) -> dict[str, Any]:
    config = loaded.model.config
    return {
        "width": config.width, "layers": config.layers, "head_size": config.mixer.head_size,
        "glu_width": config.glu_width, "vocab_size": config.vocab_size, "conv_width": config.mixer.conv_width,
        "block_size": bench.block_size, "activations": bench.activations, "batch": 1, "context": bench.context,
        "new_tokens": bench.tokens, "threads": threads,
    }  # fmt: skip


def _sample(ready: _Ready) -> Sample:
    return lambda: statistics.median(ready.decode()[0])


def _in_torch(model: LanguageModel, prompt: torch.Tensor, tokens: int) -> _Ready:
    steps = Steps(model, 1, SamplingConfig(greedy=True))

    def read() -> tuple[int, ModelState]:
        with reading(model):
            features, state = model.hidden(prompt)
            assert state is not None  # asked for, as `output_state` is by default
            return int(model.logits(features[:, -1]).argmax()), state

    first, state = read()

    def decode() -> tuple[list[float], list[int]]:
        steps.load(state, first)
        times, ids = [], []
        for _ in range(tokens):
            began = time.perf_counter()
            ids += steps.choose()
            times.append(time.perf_counter() - began)
        return times, ids

    size = sum(parameter.nbytes for parameter in model.parameters())
    return _Ready(decode, _median_seconds(read), size)


def _exported(session: Session, folder: Path, prompt: torch.Tensor, tokens: int) -> _Ready:
    def read() -> tuple[int, dict[str, np.ndarray]]:
        logits, state = session(prompt.numpy(), session.zeros(1))
        return int(logits[0, -1].argmax()), state

    first, state = read()

    def decode() -> tuple[list[float], list[int]]:
        token, carried, times, ids = first, state, [], []
        for _ in range(tokens):
            began = time.perf_counter()
            logits, carried = session(np.array([[token]]), carried)
            token = int(logits[0, -1].argmax())
            times.append(time.perf_counter() - began)
            ids.append(token)
        return times, ids

    size = sum((folder / name).stat().st_size for name in (onnx_folder.GRAPH, onnx_folder.WEIGHTS))
    return _Ready(decode, _median_seconds(read), size)


def _median_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(PREFILLS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _agreeing(got: list[int], want: list[int]) -> int:
    """How many ids are the same before the first that differs."""
    return next((n for n, (mine, theirs) in enumerate(zip(got, want, strict=True)) if mine != theirs), len(want))
