"""A language-model run from beginning to end: folder, resume, training, last measurements, samples, report."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hgrn2 import cpu, perplexity
from hgrn2.data.corpus import Corpus
from hgrn2.files import owned, read_json, write_json
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.models.gates import gate_statistics
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import usable_device
from hgrn2.perplexity import Perplexity
from hgrn2.report.write import Sample, layer_gates, write_report
from hgrn2.settings import to_dict
from hgrn2.tasks.lm.task import LanguageTask, open_corpora
from hgrn2.train.config import RunConfig
from hgrn2.train.fitting import check_run
from hgrn2.train.metrics import read_metrics
from hgrn2.train.runs import prepare_folder
from hgrn2.train.runs import train as train_to_end
from hgrn2.train.same_run import refuse_other_run
from hgrn2.train.trainer import Trainer

PROMPT_TOKENS = 48  # of held-out text, before each sample of the report
GATE_TOKENS = 4096  # of held-out text, over which gates are averaged


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    folder: Path
    interrupted: bool
    step: int
    summary: dict[str, Any]
    """As in summary.json: parameters, steps, tokens, seconds, and the held-out measurements by name."""
    samples: tuple[Sample, ...] = ()


def train_language(
    run: RunConfig, folder: Path, *, device: str = "auto", restart: bool = False, quiet: bool = False
) -> RunResult:
    """Train in `folder`, or go on where an interrupted run stopped.

    Args:
        run: what to train; a folder that holds another run is refused.
        device: auto, cpu, cuda, …
        restart: drop what the folder holds of an earlier run and begin anew.
        quiet: no live view.
    """
    place = usable_device(device)
    if place.type == "cpu":
        cpu.keep_freed_memory()
    check_run(run.model, run.train, place, run.train.sequence_length)
    train, valid = open_corpora(run.data)
    task = LanguageTask(run, train, valid, place)
    with owned(folder):
        return _train(run, task, folder, restart, quiet)


def _train(run: RunConfig, task: LanguageTask, folder: Path, restart: bool, quiet: bool) -> RunResult:
    """Train in a folder that no other process works in."""
    prepare_folder(folder, run, partial(refuse_other_run, folder, run), restart=restart, assets=("tokenizer",))
    task.save_assets(folder)
    torch.manual_seed(run.train.seed)
    model = LanguageModel(run.model).to(task.device)
    model.backbone.set_recompute(run.train.recompute)
    trainer = Trainer(run, task, model, folder)
    train_to_end(trainer, trainer.view(quiet))
    if trainer.interrupted:
        return RunResult(folder, True, trainer.step, {})
    return _finish(run, trainer, task, model)


def _finish(run: RunConfig, trainer: Trainer, task: LanguageTask, model: LanguageModel) -> RunResult:
    """Measure on the whole held-out part, draw samples, write summary.json and report.html."""
    folder, valid = trainer.folder, task.valid
    began = time.perf_counter()
    window = run.train.sequence_length
    found = [
        perplexity.carried(model, valid, reset_documents=run.data.reset_at_documents),
        perplexity.windows(model, valid, window=window),
    ]
    samples = _samples(model, task.train, valid)
    summary = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": trainer.step,
        "tokens": trainer.step * task.tokens_per_step,
        "train_seconds": round(trainer.elapsed_s, 1),
        "eval_seconds": round(time.perf_counter() - began, 1),
        "held_out": {_label(p, window): to_dict(p) for p in found},
    }
    write_json(folder / "summary.json", summary)
    tokens = torch.from_numpy(valid.read(0, min(GATE_TOKENS, valid.n_tokens))).to(model.device)
    gates = layer_gates(gate_statistics(model, tokens[None]))
    write_report(
        folder, config=to_dict(run), environment=read_json(folder / "environment.json"),
        metrics=read_metrics(folder / "metrics.jsonl"), summary=summary, samples=list(samples), gates=gates,
    )  # fmt: skip
    return RunResult(folder, False, trainer.step, summary, samples)


def _label(found: Perplexity, window: int) -> str:
    return "carried state" if found.name == "carried" else f"windows of {window}"


def _samples(model: LanguageModel, train: Corpus, valid: Corpus) -> tuple[Sample, ...]:
    """Two continuations of held-out text, with fixed seeds."""
    tokenizer = train.tokenizer()
    generator = Generator(model, tokenizer)
    made = []
    for n in range(2):
        start = n * (valid.n_tokens // 2)
        prompt = valid.read(start, min(PROMPT_TOKENS, valid.n_tokens - start))
        config = GenerationConfig(max_tokens=300, sampling=SamplingConfig(temperature=0.8, top_k=200, seed=n))
        text = generator.generate(prompt, config)[0].text
        made.append(Sample(prompt=tokenizer.decode(prompt), text=text))
    return tuple(made)


def fit_vocabulary(run: RunConfig) -> RunConfig:
    """The run with the model's vocabulary set to that of its data."""
    train, _ = open_corpora(run.data)
    return replace(run, model=replace(run.model, vocab_size=train.vocab_size))
