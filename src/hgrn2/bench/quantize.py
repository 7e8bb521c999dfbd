"""What quantised weights cost and give, for a trained model: nats/token, speed of tokens and prompts, bytes."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hgrn2 import perplexity
from hgrn2.bench.attempt import synchronize
from hgrn2.bench.quantize_settings import QuantizeBench
from hgrn2.bench.settings import Limits
from hgrn2.bench.timing import Sample, interleave, prepare_process
from hgrn2.data.corpus import Corpus
from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.loading import load
from hgrn2.generate.steps import Steps, choose_graph
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.models.quantize.config import QuantizeConfig
from hgrn2.models.quantize.model import QuantizedLanguageModel, weight_bytes
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement
from hgrn2.settings import refuse


def measure(
    path: Path, corpus: Corpus, bench: QuantizeBench, record: Callable[[Row], None], progress: Progress = silent
) -> None:
    """Measure the model in every precision; one row each goes to `record`, with decoding tokens/s as its value.

    Raises:
        UserError: for a text shorter than the prompt.
    """
    refuse(corpus.n_tokens < bench.context, f"{corpus.name} has {corpus.n_tokens} tokens, --context {bench.context}")
    conditions = prepare_process(Limits(threads=bench.threads, repeats=bench.repeats))
    text = perplexity.Beginning(corpus, bench.text_tokens)
    prompt = torch.from_numpy(corpus.read(0, bench.context)).unsqueeze(0)
    models: dict[str, LanguageModel] = {}
    nats: dict[str, float] = {}
    for n, name in enumerate(bench.weights):
        progress(f"reading the text with {name}", n, len(bench.weights))
        models[name] = _load(path, name, bench.device)
        nats[name] = perplexity.carried(models[name], text).nats_per_token
    prefills = {name: _prefill(model, prompt) for name, model in models.items()}
    limits = Limits(repeats=bench.repeats)
    reading_s = interleave(prefills, limits, "reading a prompt", progress)
    decodes = {name: _decode(model, prompt, bench.tokens) for name, model in models.items()}
    decoding_s = interleave(decodes, limits, "decoding", progress)
    for name, model in models.items():
        details = {
            "nats_per_token": round(nats[name], 5),
            "prompt_tokens_per_s": round(bench.context / statistics.median(reading_s[name]), 1),
            "weight_bytes": weight_bytes(model),
            "not_as_asked": len(model.fallbacks) if isinstance(model, QuantizedLanguageModel) else 0,
            **conditions,
        }
        case = _case(model, corpus, text.n_tokens, bench)
        speeds = [1 / seconds for seconds in decoding_s[name]]
        record(measurement("quantize", case, name, "torch", speeds, "tokens/s", details))


def _load(path: Path, name: str, device: str) -> LanguageModel:
    if name == "int8" or name == "int4":
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        return load(path, device, dtype, quantization=QuantizeConfig(kind=name)).model
    return load(path, device, getattr(torch, name)).model


def _case(model: LanguageModel, corpus: Corpus, text_tokens: int, bench: QuantizeBench) -> dict[str, Any]:
    config = model.config
    return {
        "width": config.width, "layers": config.layers, "head_size": config.mixer.head_size,
        "glu_width": config.glu_width, "vocab_size": config.vocab_size, "text": Path(corpus.name).name,
        "text_tokens": text_tokens, "batch": 1, "context": bench.context, "new_tokens": bench.tokens,
        "device": bench.device, "threads": bench.threads,
    }  # fmt: skip


def _prefill(model: LanguageModel, prompt: torch.Tensor) -> Sample:
    device = model.device
    tokens = prompt.to(device)

    def sample() -> float:
        with reading(model):
            synchronize(device)
            began = time.perf_counter()
            features, _ = model.hidden(tokens)
            model.logits(features[:, -1])
            synchronize(device)
            return time.perf_counter() - began

    return sample


def _decode(model: LanguageModel, prompt: torch.Tensor, tokens: int) -> Sample:
    device = model.device
    steps = Steps(model, 1, SamplingConfig(greedy=True), graph=choose_graph(device, "auto")[0])
    with reading(model):
        features, state = model.hidden(prompt.to(device))
        assert state is not None  # asked for, as `output_state` is by default
        first = int(model.logits(features[:, -1]).argmax())

    def sample() -> float:
        steps.load(state, first)
        with reading(model):
            times = []
            for _ in range(tokens):
                synchronize(device)
                began = time.perf_counter()
                steps.run()
                synchronize(device)
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    return sample
