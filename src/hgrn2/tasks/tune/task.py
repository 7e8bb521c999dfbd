"""State tuning as a task: the text and the loss of a language model, of which the initial states alone are trained."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from hgrn2 import perplexity
from hgrn2.data.corpus import Corpus
from hgrn2.data.samples import shakespeare_corpora
from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.files import restored
from hgrn2.generate.loading import Loaded
from hgrn2.generate.snapshots import Snapshot, save_snapshot
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.models.tuned import StateTuned
from hgrn2.report.write import write_report
from hgrn2.settings import refuse, to_dict
from hgrn2.tasks.lm.task import EMBEDDED, LanguageTask
from hgrn2.tasks.tune.config import TuneConfig, TuneSettings
from hgrn2.train.config import DataConfig
from hgrn2.train.same_run import refuse_other_run
from hgrn2.train.task import Outcome

STATE = "state.safetensors"


class TuneTask(LanguageTask):
    """Batches and loss are a language model's; what is trained and what is left behind is a state."""

    assets = (STATE,)

    def __init__(self, run: TuneConfig, loaded: Loaded) -> None:
        train, valid = corpora(run.data, loaded)
        first = run.start_tokens
        refuse(first > train.n_tokens, f"start_tokens is {first:,}; {train.name} has {train.n_tokens:,} tokens")
        super().__init__(run, train, valid, loaded.model.device)
        self.text = train
        self.flops_per_token = None  # weights get no gradients: fewer than are counted for training
        self.config, self.base, self.tokenizer = run, loaded.model, loaded.need_tokenizer()

    def model(self) -> StateTuned:
        """The frozen model with states of zeros, or those after the first tokens of the training text."""
        tuned = StateTuned(self.base, opening_token(self.tokenizer))
        tokens, state = self.config.start_tokens, None
        with reading(tuned):
            for start in range(0, tokens, 1024):
                part = torch.from_numpy(self.text.read(start, min(1024, tokens - start))).to(self.device)
                _, state = tuned.hidden(part[None], state)
        if state is not None:
            tuned.set_learned(state)
        return tuned

    def finish(self, model: Any, folder: Path) -> Outcome:
        """Save the state; measure the whole held-out text with and without it."""
        with reading(model):
            learned = model.learned
        # The opening is the one token of the text so far, and unread: see models/tuned.py.
        snapshot = Snapshot(learned, model.opening, 1)
        save_snapshot(folder / STATE, snapshot, self.base, self.tokenizer, overwrite=True)
        return Outcome(
            held_out=held_out(self.base, model, self.config.settings, self.valid),
            facts={
                "parameters": sum(p.numel() for p in self.base.parameters()),
                "trained_numbers": sum(p.numel() for p in model.parameters()),
            },
            report=partial(write_report, samples=[], gates=None),
        )

    def refuse_other(self, folder: Path, saved: Any) -> None:
        """The same base, data and optimiser, and the same beginning."""
        other = saved.base_hash != self.config.base_hash
        refuse(other, f"{folder} holds a run on another model; use another --out")
        refuse_other_run(folder, self.config, saved)

    def save_assets(self, folder: Path) -> None:
        """Nothing yet: the state comes at the end, and the tokenizer is the model's."""


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
