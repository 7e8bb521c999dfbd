"""Language modelling: next token on packed text."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgrn2 import perplexity
from hgrn2.data.corpus import Corpus
from hgrn2.data.manifest import read_manifest
from hgrn2.data.mixture import MixedBatches, Mixture, held_out
from hgrn2.data.packing import Batch, Batches, BatchPlan
from hgrn2.data.samples import shakespeare_corpora
from hgrn2.data.streams import StreamBatch, Streams
from hgrn2.data.tokenizer import save_once
from hgrn2.errors import UserError
from hgrn2.files import restored
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.layers.state import ModelState
from hgrn2.models.count import flops_per_token
from hgrn2.models.gates import gate_statistics
from hgrn2.models.language import LanguageModel
from hgrn2.perplexity import Perplexity
from hgrn2.report.write import Sample, layer_gates, write_report
from hgrn2.settings import refuse, to_dict
from hgrn2.train.carried import Rows
from hgrn2.train.config import DataConfig, Run
from hgrn2.train.task import Outcome, Task

EMBEDDED = "shakespeare"
PROMPT_TOKENS = 48  # of held-out text, before each sample of the report
GATE_TOKENS = 4096  # of held-out text, over which gates are averaged


def open_corpora(data: DataConfig) -> tuple[Corpus | Mixture, Corpus]:
    """Training and held-out tokens of a source, or of a mixture: there one held-out text after the other."""
    if data.mixture:
        return Mixture.open(data.mixture, data.train_split), held_out(data.mixture, data.valid_split)
    if data.source == EMBEDDED:
        sample = shakespeare_corpora()
        return sample.train, sample.valid
    if not restored(Path(data.source)).is_dir():
        raise UserError(f"data {data.source!r} is neither {EMBEDDED!r} nor the folder of a prepared corpus")
    return Corpus.open(data.source, data.train_split), Corpus.open(data.source, data.valid_split)


def open_further(data: DataConfig, train: Corpus | Mixture) -> dict[str, Corpus]:
    """Further held-out corpora by name; one that is missing or in other tokens is a `UserError` that names it."""
    found = {}
    for name, folder in data.named.items():
        path = restored(Path(folder))
        refuse(not path.is_dir(), f"data.validation: {name} is {folder!r}, which is no folder of a prepared corpus")
        splits = read_manifest(path).splits
        split = next(iter(splits)) if len(splits) == 1 else data.valid_split
        found[name] = corpus = Corpus.open(path, split)
        other = corpus.tokenizer().identity() != train.tokenizer().identity()
        refuse(other, f"data.validation: {name} was prepared with another tokenizer than {train.name}")
        refuse(corpus.n_tokens < 2, f"data.validation: {name} has {corpus.n_tokens} tokens; it takes at least 2")
    return found


class LanguageTask(Task):
    """Batches, loss and measurements of a language model."""

    assets = ("tokenizer",)

    def __init__(
        self,
        run: Run,
        train: Corpus | Mixture,
        valid: Corpus,
        device: torch.device,
        further: Mapping[str, Corpus] | None = None,
    ) -> None:
        """further: held-out corpora that are measured besides, by name."""
        self.run, self.train, self.valid, self.device = run, train, valid, device
        self.further = dict(further or {})
        if train.vocab_size > run.model.vocab_size:
            raise UserError(f"the data has {train.vocab_size} token ids, the model only {run.model.vocab_size}")
        if valid.n_tokens < 2:
            raise UserError(f"{valid.name} has {valid.n_tokens} held-out tokens; a measurement takes at least 2")
        self.tokens_per_step = run.train.tokens_per_step
        seen = run.train.sequence_length // 2  # by attention, on average
        self.flops_per_token = flops_per_token(run.model, training=True, tokens=seen)
        self.data_identity = train.identity()
        plan = BatchPlan(
            sequence_length=run.train.sequence_length,
            batch_size=run.train.batch_size,
            seed=run.train.seed,
            reset_at_documents=run.data.reset_at_documents,
        )
        self.carries = run.data.carry
        if isinstance(train, Mixture):
            self.batches = MixedBatches(train, plan)
        else:
            self.batches = Streams(train, plan) if self.carries else Batches(train, plan)

    def model(self) -> LanguageModel:
        """A language model."""
        return LanguageModel(self.run.model).to(self.device)

    def batch(self, step: int, part: int, parts: int) -> tuple[Any, ...]:
        """Inputs and targets [B,T]; [1,B*T] with `cu_seqlens` where documents reset the state; where states are
        carried, also the `Rows`."""
        found = self.batches.batch(step, part, parts)
        if isinstance(found, StreamBatch):
            return *self._placed(found.batch), Rows.of(found.goes_on, found.batch.cu_seqlens)
        return self._placed(found)

    def _placed(self, found: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, targets = torch.from_numpy(found.inputs), torch.from_numpy(found.targets)
        if found.cu_seqlens is None:
            return inputs.to(self.device), targets.to(self.device), None
        cu_seqlens = torch.from_numpy(found.cu_seqlens).to(self.device)
        return inputs.view(1, -1).to(self.device), targets.view(1, -1).to(self.device), cu_seqlens

    def epochs(self, steps: int) -> float:
        """How often so many steps go through the training text."""
        return self.batches.epochs(steps)

    def shares(self, steps: int) -> dict[str, Any]:
        """Of a mixture: what was read of each corpus in so many steps."""
        return self.batches.shares(steps) if isinstance(self.batches, MixedBatches) else {}

    def loss(self, model: LanguageModel, batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """Mean nats/token."""
        inputs, targets, cu_seqlens = batch
        return model.loss(inputs, targets, cu_seqlens=cu_seqlens, method=self.run.train.loss)

    def loss_from(
        self, model: LanguageModel, batch: tuple[Tensor, Tensor, Tensor | None, Rows], state: ModelState | None
    ) -> tuple[Tensor, ModelState]:
        """Mean nats/token of rows that read on, and the states in which they end."""
        inputs, targets, cu_seqlens, rows = batch
        start, method = rows.before(model, state), self.run.train.loss
        loss, final = model.loss_and_state(inputs, targets, start, cu_seqlens=cu_seqlens, method=method)
        return loss, rows.after(final)

    def evaluate(self, model: LanguageModel) -> dict[str, Any]:
        """Held-out nats/token over disjoint windows of the training length, on the first `eval_tokens` of each text."""

        def measured(corpus: Corpus) -> Perplexity:
            part = perplexity.Beginning(corpus, self.run.train.eval_tokens, corpus.tokenizer())
            return perplexity.windows(model, part, window=self.run.train.sequence_length)

        found = measured(self.valid)
        corpora = {name: measured(corpus).nats_per_token for name, corpus in self.further.items()}
        return {"loss": found.nats_per_token, "bits_per_byte": found.bits_per_byte, "corpora": corpora}

    def finish(self, model: LanguageModel, folder: Path) -> Outcome:
        """All held-out texts, carried and in windows of the training length; two samples; the gates."""
        window, reset = self.run.train.sequence_length, self.run.data.reset_at_documents
        found = {}
        for name, corpus in {"": self.valid, **self.further}.items():
            for one in (
                perplexity.carried(model, corpus, reset_documents=reset),
                perplexity.windows(model, corpus, window=window),
            ):
                found[f"{name}: {_label(one, window)}" if name else _label(one, window)] = to_dict(one)
        samples = _samples(model, self.train, self.valid)
        tokens = torch.from_numpy(self.valid.read(0, min(GATE_TOKENS, self.valid.n_tokens))).to(self.device)
        gates = layer_gates(gate_statistics(model, tokens[None]))
        return Outcome(
            held_out=found, samples=samples,
            report=partial(write_report, samples=list(samples), gates=gates),
        )  # fmt: skip

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer."""
        save_once(self.train.tokenizer(), folder / "tokenizer")


def _label(found: Perplexity, window: int) -> str:
    return "carried state" if found.name == "carried" else f"windows of {window}"


def _samples(model: LanguageModel, train: Corpus | Mixture, valid: Corpus) -> tuple[Sample, ...]:
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
