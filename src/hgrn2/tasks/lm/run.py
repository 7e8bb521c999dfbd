"""Language models are trained: a run's settings in, a run folder out."""

from dataclasses import replace
from pathlib import Path

import torch

from hgrn2.tasks.lm.task import LanguageTask, open_corpora, open_further
from hgrn2.train.config import RunConfig
from hgrn2.train.run import RunResult, train


def train_language(
    run: RunConfig, folder: Path, *, device: str = "auto", restart: bool = False, quiet: bool = False,
    branch: Path | None = None,
) -> RunResult:  # fmt: skip
    """Train in `folder`, or go on where an interrupted run stopped; arguments as of `hgrn2.train.run.train`."""

    def opened(place: torch.device) -> LanguageTask:
        text, valid = open_corpora(run.data)
        return LanguageTask(run, text, valid, place, open_further(run.data, text))

    return train(
        run, opened, folder, device=device, restart=restart, quiet=quiet, branch=branch,
    )  # fmt: skip


def fit_vocabulary(run: RunConfig) -> RunConfig:
    """The run with the model's vocabulary set to that of its data."""
    text, _ = open_corpora(run.data)
    return replace(run, model=replace(run.model, vocab_size=text.vocab_size))
