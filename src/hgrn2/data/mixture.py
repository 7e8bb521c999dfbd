"""Several corpora trained on together, each with its share of the sequences: a pure function of (seed, step) too.

Which corpus sequence g of the run is taken from repeats every `PERIOD` sequences, in which each corpus has its quota to
the sequence. Inside a period the corpora lie as evenly as can be (the bits of g reversed), so that already a batch has
them in about their shares. The k-th sequence of a corpus is the k-th of a run on it alone (`hgrn2.data.packing`): each
window once an epoch, in a random order, whatever the other corpora are.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.corpus import Corpus
from hgrn2.data.manifest import read_manifest
from hgrn2.data.packing import Batch, Batches, BatchPlan, packed
from hgrn2.data.permutation import keys
from hgrn2.data.shares import PERIOD, parse_mixture, quotas
from hgrn2.data.tokenizer import Tokenizer
from hgrn2.data.tokenizer_base import digest
from hgrn2.files import restored
from hgrn2.settings import refuse


class Mixture:
    """Corpora of one tokenizer, and their shares, which sum to 1."""

    def __init__(self, corpora: Sequence[Corpus], weights: Sequence[float], names: Sequence[str] | None = None) -> None:
        """`weights` are positive. Corpora of different tokenizers are a `UserError`."""
        self.corpora, self.weights = tuple(corpora), tuple(weight / sum(weights) for weight in weights)
        self.names = tuple(names or (corpus.name for corpus in corpora))
        first = self.corpora[0]
        for other in self.corpora[1:]:
            same = other.tokenizer().identity() == first.tokenizer().identity()
            refuse(not same, f"{other.name} was prepared with another tokenizer than {first.name}: they do not mix")
        self.name = "mixture of " + ", ".join(self.names)
        self.vocab_size = first.vocab_size
        self.n_tokens = sum(corpus.n_tokens for corpus in self.corpora)

    @classmethod
    def open(cls, written: Sequence[str], split: str) -> "Mixture":
        """Map a split of each corpus, written FOLDER=WEIGHT."""
        shares = parse_mixture(written)
        corpora = [Corpus.open(_folder(share.folder), split) for share in shares]
        return cls(corpora, [share.weight for share in shares], [share.folder for share in shares])

    def tokenizer(self) -> Tokenizer:
        """That of all of them."""
        return self.corpora[0].tokenizer()

    def identity(self) -> str:
        """Hex digest that differs where a corpus, its place or its share does."""
        return digest([[corpus.identity(), quota] for corpus, quota in zip(self.corpora, self.quotas, strict=True)])

    @property
    def quotas(self) -> list[int]:
        """Sequences of each corpus, of `PERIOD`."""
        return quotas(self.weights)


def held_out(written: Sequence[str], split: str) -> Corpus:
    """The held-out text of a mixture: the splits of those corpora that have one, laid end to end."""
    folders = [_folder(share.folder) for share in parse_mixture(written)]
    found = [Corpus.open(folder, split) for folder in folders if split in read_manifest(folder).splits]
    refuse(not found, f"none of {', '.join(map(str, folders))} has a split {split!r} to measure on")
    return Corpus.joined(found)


class MixedBatches:
    """The batches of a mixture under a plan. Refuses a corpus shorter than one sequence and its last target."""

    def __init__(self, mixture: Mixture, plan: BatchPlan) -> None:
        self.mixture, self.plan = mixture, plan
        self._each = [
            Batches(corpus, replace(plan, seed=(plan.seed + n) % 2**64)) for n, corpus in enumerate(mixture.corpora)
        ]
        self._quotas = np.array(mixture.quotas, dtype=np.int64)
        shift = int(keys(plan.seed, np.zeros(1))[0] % np.uint64(PERIOD))
        slots = (_reversed(np.arange(PERIOD)) + shift) % PERIOD
        self._which = np.searchsorted(np.cumsum(self._quotas), slots, side="right")
        self._earlier = np.zeros(PERIOD, dtype=np.int64)  # sequences of the same corpus before this one in the period
        for n, quota in enumerate(self._quotas.tolist()):
            self._earlier[self._which == n] = np.arange(quota)

    def epochs(self, steps: int) -> float:
        """How many times as many windows as all corpora have a number of steps goes through."""
        return steps * self.plan.batch_size / sum(one.windows_per_epoch for one in self._each)

    def shares(self, steps: int) -> dict[str, Any]:
        """What a number of steps has read of each corpus, by folder: sequences, and epochs of that corpus."""
        periods, rest = divmod(steps * self.plan.batch_size, PERIOD)
        counts = periods * self._quotas + np.bincount(self._which[:rest], minlength=len(self._quotas))
        return {
            name: {"weight": round(weight, 6), "sequences": count, "epochs": round(count / one.windows_per_epoch, 3)}
            for name, weight, count, one in zip(
                self.mixture.names, self.mixture.weights, counts.tolist(), self._each, strict=True
            )
        }

    def places(self, sequences: np.ndarray) -> list[tuple[int, int]]:
        """(number of the corpus, where in it) of each sequence of the run, counted from 0."""
        period, place = np.divmod(np.asarray(sequences, dtype=np.int64), PERIOD)
        which = self._which[place]
        numbers = period * self._quotas[which] + self._earlier[place]
        starts = np.zeros(len(which), dtype=np.int64)
        for n in np.unique(which).tolist():
            starts[which == n] = self._each[n].starts(numbers[which == n])
        return list(zip(which.tolist(), starts.tolist(), strict=True))

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """This rank's sequences of a step, or one of `parts` equal parts of them."""
        rows = self.places(self.plan.sequences(step, part, parts))
        return packed([(self.mixture.corpora[n], start) for n, start in rows], self.plan)


def _reversed(numbers: np.ndarray) -> np.ndarray:
    """Numbers below `PERIOD` with their bits in the opposite order."""
    found = np.zeros_like(numbers)
    for bit in range(PERIOD.bit_length() - 1):
        found = found << 1 | numbers >> bit & 1
    return found


def _folder(folder: str) -> Path:
    path = restored(Path(folder))
    refuse(not path.is_dir(), f"data.mixture: {folder!r} is not the folder of a prepared corpus")
    return path
