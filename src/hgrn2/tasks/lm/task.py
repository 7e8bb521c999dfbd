"""Language modelling: next token on packed text."""

from pathlib import Path

import torch
from torch import Tensor

from hgrn2 import perplexity
from hgrn2.data.corpus import Corpus
from hgrn2.data.packing import Batches, BatchPlan
from hgrn2.data.samples import shakespeare_corpora
from hgrn2.data.tokenizer import save_once
from hgrn2.errors import UserError
from hgrn2.files import restored
from hgrn2.models.language import LanguageModel
from hgrn2.train.config import DataConfig, RunConfig

EMBEDDED = "shakespeare"


def open_corpora(data: DataConfig) -> tuple[Corpus, Corpus]:
    """Training and held-out tokens of a source."""
    if data.source == EMBEDDED:
        sample = shakespeare_corpora()
        return sample.train, sample.valid
    if not restored(Path(data.source)).is_dir():
        raise UserError(f"data {data.source!r} is neither {EMBEDDED!r} nor the folder of a prepared corpus")
    return Corpus.open(data.source, data.train_split), Corpus.open(data.source, data.valid_split)


class LanguageTask:
    """Batches, loss and measurements of a language model; see `hgrn2.train.task.Task`."""

    def __init__(self, run: RunConfig, train: Corpus, valid: Corpus, device: torch.device) -> None:
        self.run, self.train, self.valid, self.device = run, train, valid, device
        if train.vocab_size > run.model.vocab_size:
            raise UserError(f"the data has {train.vocab_size} token ids, the model only {run.model.vocab_size}")
        if valid.n_tokens < 2:
            raise UserError(f"{valid.name} has {valid.n_tokens} held-out tokens; a measurement takes at least 2")
        self.tokens_per_step = run.train.tokens_per_step
        self.data_identity = train.identity()
        plan = BatchPlan(
            sequence_length=run.train.sequence_length,
            batch_size=run.train.batch_size,
            seed=run.train.seed,
            reset_at_documents=run.data.reset_at_documents,
        )
        self.batches = Batches(train, plan)

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs and targets [B,T]; [1,B*T] with `cu_seqlens` where documents reset the state."""
        found = self.batches.batch(step, part, parts)
        inputs, targets = torch.from_numpy(found.inputs), torch.from_numpy(found.targets)
        if found.cu_seqlens is None:
            return inputs.to(self.device), targets.to(self.device), None
        cu_seqlens = torch.from_numpy(found.cu_seqlens).to(self.device)
        return inputs.view(1, -1).to(self.device), targets.view(1, -1).to(self.device), cu_seqlens

    def epochs(self, steps: int) -> float:
        """How often so many steps go through the training text."""
        return self.batches.epochs(steps)

    def loss(self, model: LanguageModel, batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """Mean nats a token."""
        inputs, targets, cu_seqlens = batch
        return model.loss(inputs, targets, cu_seqlens=cu_seqlens, method=self.run.train.loss)

    def evaluate(self, model: LanguageModel) -> dict[str, float | None]:
        """Held-out nats a token over disjoint windows of the training length, on the first `eval_tokens`."""
        part = perplexity.Beginning(self.valid, self.run.train.eval_tokens, self.valid.tokenizer())
        found = perplexity.windows(model, part, window=self.run.train.sequence_length)
        return {"loss": found.nats_per_token, "bits_per_byte": found.bits_per_byte}

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer."""
        save_once(self.train.tokenizer(), folder / "tokenizer")
