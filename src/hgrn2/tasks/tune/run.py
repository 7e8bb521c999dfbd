"""State tuning from beginning to end: a frozen model and a text in, a state file out, and a run folder on the way."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hgrn2 import cpu, perplexity
from hgrn2.data.corpus import Corpus
from hgrn2.data.samples import shakespeare_corpora
from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.files import owned, read_json, restored, write_json
from hgrn2.generate.loading import Loaded
from hgrn2.generate.snapshots import Snapshot, save_snapshot
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.models.saved import model_hash
from hgrn2.models.tuned import StateTuned, check_tunable
from hgrn2.report.write import write_report
from hgrn2.settings import refuse, to_dict
from hgrn2.tasks.lm.task import EMBEDDED, LanguageTask
from hgrn2.tasks.tune.config import TuneConfig, TuneSettings
from hgrn2.train.config import DataConfig
from hgrn2.train.fitting import check_run
from hgrn2.train.metrics import read_metrics
from hgrn2.train.runs import prepare_folder
from hgrn2.train.runs import train as train_to_end
from hgrn2.train.same_run import refuse_different, refuse_other_run
from hgrn2.train.trainer import Trainer

STATE = "state.safetensors"


@dataclass(frozen=True)
class TuneResult:
    """What a run ended with."""

    folder: Path
    interrupted: bool
    step: int
    summary: dict[str, Any]
    """As in summary.json: trained numbers, steps, tokens, seconds, held-out measurements before and after."""

    @property
    def state(self) -> Path:
        """The learned state, for `hgrn2 generate --state`; written when the run ends."""
        return self.folder / STATE


def tune_state(
    loaded: Loaded, settings: TuneSettings, folder: Path, *, restart: bool = False, quiet: bool = False
) -> TuneResult:
    """Learn initial states for a text in `folder`, or go on where an interrupted run stopped.

    Args:
        loaded: the model, which stays as it is, and its tokenizer.
        settings: data and training; a folder that holds another run is refused.
        restart: drop what the folder holds of an earlier run and begin anew.
        quiet: no live view.
    """
    base, tokenizer = loaded.model, loaded.need_tokenizer()
    place = base.device
    if place.type == "cpu":
        cpu.keep_freed_memory()
    check_tunable(base.config)
    train, valid = corpora(settings.data, loaded)
    first = settings.start_tokens
    refuse(first > train.n_tokens, f"start_tokens is {first:,}; {train.name} has {train.n_tokens:,} tokens")
    config = TuneConfig(
        base=str(loaded.found.run or loaded.found.folder), base_hash=model_hash(base), model=base.config,
        settings=settings,
    )  # fmt: skip
    run = config.run
    check_run(run.model, run.train, place, run.train.sequence_length, trained=False)
    task = LanguageTask(run, train, valid, place)
    with owned(folder):
        return _tune(config, task, base, tokenizer, folder, restart, quiet)


def _tune(
    config: TuneConfig, task: LanguageTask, base: LanguageModel, tokenizer: Tokenizer, folder: Path, restart: bool,
    quiet: bool,
) -> TuneResult:  # fmt: skip
    """Tune in a folder that no other process works in."""
    run = config.run
    prepare_folder(folder, config, partial(_refuse_other, folder, config), restart=restart, assets=(STATE,))
    torch.manual_seed(run.train.seed)
    tuned = StateTuned(base, opening_token(tokenizer))
    base.backbone.set_recompute(run.train.recompute)
    _begin(tuned, task.train, config.settings.start_tokens)
    trainer = Trainer(run, task, tuned, folder)
    train_to_end(trainer, trainer.view(quiet))
    if trainer.interrupted:
        return TuneResult(folder, True, trainer.step, {})
    summary = _finish(config, trainer, task, tuned, base, tokenizer)
    return TuneResult(folder, False, trainer.step, summary)


def corpora(data: DataConfig, loaded: Loaded) -> tuple[Corpus, Corpus]:
    """Training and held-out text in the model's own tokens; text prepared with another tokenizer is a `UserError`."""
    tokenizer = loaded.need_tokenizer()
    if data.source == EMBEDDED:
        sample = shakespeare_corpora(tokenizer)
        return sample.train, sample.valid
    path = restored(Path(data.source))
    refuse(not path.is_dir(), f"data {data.source!r} is neither {EMBEDDED!r} nor the folder of a prepared corpus")
    found = Corpus.open(path, data.train_split), Corpus.open(path, data.valid_split)
    other = found[0].tokenizer().identity() != tokenizer.identity()
    hint = f"prepare it with --tokenizer {loaded.found.tokenizer}"
    refuse(other, f"{path} was prepared with another tokenizer than {loaded.name} has; {hint}")
    return found


def opening_token(tokenizer: Tokenizer) -> int:
    """What texts begin with here: the end-of-document mark, else a new line, else whatever has the first id."""
    if tokenizer.eot is not None:
        return tokenizer.eot
    try:
        return int(tokenizer.encode("\n", continues=True)[0])
    except UserError:  # a vocabulary of characters without it; the state is learned in front of any token
        return 0


def _begin(tuned: StateTuned, train: Corpus, tokens: int) -> None:
    """Start from the state after the first tokens of the training text."""
    if tokens == 0:
        return
    state = None
    with reading(tuned):
        for start in range(0, tokens, 1024):
            part = torch.from_numpy(train.read(start, min(1024, tokens - start))).to(tuned.recurrent[0].device)
            _, state = tuned.hidden(part[None], state)
    assert state is not None  # some tokens were read
    tuned.set_learned(state)


def _refuse_other(folder: Path, config: TuneConfig, saved: TuneConfig) -> None:
    """The same base, data and optimiser, and the same beginning."""
    refuse(saved.base_hash != config.base_hash, f"{folder} holds a run on another model; use another --out")
    refuse_other_run(folder, config.run, saved.run)
    asked, held = ({"start_tokens": one.settings.start_tokens} for one in (config, saved))
    refuse_different(folder, asked, held)


def _finish(
    config: TuneConfig, trainer: Trainer, task: LanguageTask, tuned: StateTuned, base: LanguageModel,
    tokenizer: Tokenizer,
) -> dict[str, Any]:  # fmt: skip
    """Save the state; measure the whole held-out text with and without it; write summary.json and report.html."""
    folder = trainer.folder
    with reading(tuned):
        learned = tuned.learned
    # The opening is the one token of the text so far, and unread: see models/tuned.py.
    save_snapshot(folder / STATE, Snapshot(learned, tuned.opening, 1), base, tokenizer, overwrite=True)
    summary: dict[str, Any] = {
        "trained_numbers": sum(p.numel() for p in tuned.parameters()),
        "steps": trainer.step,
        "tokens": trainer.step * task.tokens_per_step,
        "train_seconds": round(trainer.elapsed_s, 1),
        "held_out": held_out(base, tuned, config.settings, task.valid),
    }
    write_json(folder / "summary.json", summary)
    write_report(
        folder, config=to_dict(config), environment=read_json(folder / "environment.json"),
        metrics=read_metrics(folder / "metrics.jsonl"), summary=summary, samples=[], gates=None,
    )  # fmt: skip
    return summary


def held_out(
    base: LanguageModel, tuned: LanguageModel, settings: TuneSettings, valid: Corpus
) -> dict[str, dict[str, Any]]:
    """Held-out text under the model before and after, carried and in windows of the training length."""
    found, window = {}, settings.train.sequence_length
    for model, when in ((base, "before"), (tuned, "after")):
        carried = perplexity.carried(model, valid, reset_documents=settings.data.reset_at_documents)
        found[f"carried state, {when}"] = to_dict(carried)
        found[f"windows of {window}, {when}"] = to_dict(perplexity.windows(model, valid, window=window))
    return found


def with_data(settings: TuneSettings, source: str | None) -> TuneSettings:
    """The settings with another text."""
    return settings if source is None else replace(settings, data=replace(settings.data, source=source))
