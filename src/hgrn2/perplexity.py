"""How well a model predicts a text, in three numbers that are not the same number.

    carried   The text is read once from its beginning to its end and the state is never dropped: every token is
              predicted from all tokens before it. The number of a recurrent model in use.
    strided   A window of W tokens starts from a zero state every S tokens; only its last S predictions count (all of
              the first window). Every token but the first few is predicted from at least W - S tokens before it.
    windows   Strided with S = W: disjoint windows from a zero state, so that tokens have from 1 to W tokens before
              them. The number that training batches and most published evaluations report.

Each is the sum of -ln p(token | tokens before it) over every token of the text but the first, which nothing predicts,
divided by their count n - 1. Logits are taken in float32 (float64 for a float64 model), the sum is kept in float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.ops.arguments import check_whole
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

MEANING = {
    "carried": "state carried through the whole text",
    "strided": "windows of {window} tokens from a zero state, the last {stride} of each count",
    "windows": "disjoint windows of {window} tokens from a zero state",
}
LOGITS_AT_ONCE = 1 << 24  # elements: 64 MB of float32, whatever the vocabulary
BYTES_AT_ONCE = 1 << 16  # tokens whose text is counted at a time
DOCUMENTS_AT_ONCE = 16  # states held by one call that resets at document starts


class Corpus(Protocol):
    """The text: what `hgrn2.data.corpus.Corpus` offers and this module uses."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def text_bytes(self) -> int | None:
        """UTF-8 size of the text; None where it is not known."""
        ...

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64."""
        ...

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        """Rising positions in [start, stop) at which documents start; asked for by `reset_documents` only."""
        ...


class Tokenizer(Protocol):
    """Something that knows how much text ids stand for."""

    @property
    def eot(self) -> int | None: ...

    def bytes_per(self, ids: np.ndarray, *, continues: bool = False) -> int: ...


@dataclass(frozen=True)
class Perplexity:
    """A measurement."""

    name: str
    """carried, strided or windows."""
    nats_per_token: float
    tokens: int
    """Predicted tokens, each counted once."""
    bits_per_byte: float | None
    """nats_per_token * n_tokens / text_bytes / ln 2: the first token is counted like the mean of the others."""
    perplexity: float
    """exp(nats_per_token)"""


class Beginning:
    """The first `length` tokens of a corpus (all, if it has fewer), as a corpus."""

    def __init__(self, corpus: Corpus, length: int, tokenizer: Tokenizer | None = None) -> None:
        """Without a tokenizer the part's `text_bytes` is not known."""
        check_whole(length, "limit")
        refuse(length < 2, f"a limit of {length} tokens leaves nothing to predict; it must be at least 2")
        self.corpus = corpus
        self.n_tokens = min(length, corpus.n_tokens)
        self.text_bytes = corpus.text_bytes
        if self.n_tokens < corpus.n_tokens:
            self.text_bytes = self._count(tokenizer) if tokenizer else None

    def read(self, start: int, length: int) -> np.ndarray:
        if not 0 <= start <= self.n_tokens - length:
            raise IndexError(f"tokens [{start}, {start + length}) of {self.n_tokens}")
        return self.corpus.read(start, length)

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        return self.corpus.starts_between(start, min(stop, self.n_tokens))

    def _count(self, tokenizer: Tokenizer) -> int:
        total, continues = 0, False
        for start in range(0, self.n_tokens, BYTES_AT_ONCE):
            ids = self.read(start, min(BYTES_AT_ONCE, self.n_tokens - start))
            total += tokenizer.bytes_per(ids, continues=continues)
            continues = ids[-1] != tokenizer.eot
        return total


def carried(
    model: LanguageModel,
    corpus: Corpus,
    *,
    segment: int = 1024,
    reset_documents: bool = False,
    progress: Progress = silent,
) -> Perplexity:
    """The state carried through the whole text, which is read in segments: memory does not grow with the text.

    Args:
        model: read in evaluation mode, given back in the mode it had.
        corpus: the text.
        segment: tokens of one call; it changes speed and memory, not the number.
        reset_documents: start from a zero state at each document. A document's first token is then still predicted, by
            the state of the document before it, as in training.
        progress: told the measurement, predicted tokens so far, all of them.
    """
    check_whole(segment, "segment")
    targets = _targets(corpus)
    total, state = 0.0, None
    with reading(model):
        for start in range(0, targets, segment):
            stop = min(start + segment, targets)
            tokens = _read(model, corpus, start, stop)
            resets = corpus.starts_between(start, stop) - start if reset_documents else np.zeros(0, dtype=np.int64)
            nats, state = _advance(model, tokens, resets, state)
            total += nats
            progress("carried", stop, targets)
    return _result("carried", total, corpus)


def strided(
    model: LanguageModel,
    corpus: Corpus,
    *,
    window: int,
    stride: int,
    batch_size: int = 8,
    progress: Progress = silent,
) -> Perplexity:
    """Windows of `window` tokens from a zero state, one every `stride` tokens, of which the last `stride` predictions
    count; all of the first window's do, and of the last one those that no window before it made.
    """
    return _in_windows("strided", model, corpus, window, stride, batch_size, progress)


def windows(
    model: LanguageModel, corpus: Corpus, *, window: int, batch_size: int = 8, progress: Progress = silent
) -> Perplexity:
    """Disjoint windows from a zero state: `strided` with a stride of one window."""
    return _in_windows("windows", model, corpus, window, window, batch_size, progress)


def _in_windows(
    name: str, model: LanguageModel, corpus: Corpus, window: int, stride: int, batch: int, progress: Progress
) -> Perplexity:
    for option, value in (("window", window), ("stride", stride), ("batch_size", batch)):
        check_whole(value, option)
    refuse(not 1 <= stride <= window, f"stride is {stride}; it must be from 1 to the window, {window}")
    targets = _targets(corpus)
    total, done = 0.0, 0
    with reading(model):
        for starts, length, counted in _plan(targets, window, stride, batch):
            tokens = torch.cat([_read(model, corpus, start, start + length) for start in starts])
            features, _ = model.hidden(tokens[:, :-1], output_state=False)
            total += _nats(model, features[:, length - counted :], tokens[:, 1 + length - counted :])
            done += len(starts) * counted
            progress(name, done, targets)
    return _result(name, total, corpus)


def _plan(targets: int, window: int, stride: int, batch: int) -> Iterator[tuple[list[int], int, int]]:
    """Groups of windows: (where they start, their length, how many of their last predictions count).

    The first window counts in full, the ones after it `stride` each, and the last one what is left: at most `stride`.
    """
    length = min(window, targets)
    yield [0], length, length
    whole = (targets - length) // stride
    for first in range(1, whole + 1, batch):
        yield [n * stride for n in range(first, min(first + batch, whole + 1))], window, stride
    left = targets - length - whole * stride
    if left:
        yield [(whole + 1) * stride], window - stride + left, left


def _advance(
    model: LanguageModel, tokens: Tensor, resets: np.ndarray, state: ModelState | None
) -> tuple[float, ModelState | None]:
    """Read one segment [1,T+1] from a state that is dropped at the positions `resets`; (summed nats, state after)."""
    length = tokens.shape[1] - 1
    state = None if len(resets) and resets[0] == 0 else state
    edges = [0, *(int(place) for place in resets if place > 0), length]
    total = 0.0
    for first in range(0, len(edges) - 1, DOCUMENTS_AT_ONCE):
        part = edges[first : first + DOCUMENTS_AT_ONCE + 1]
        begin, end, documents = part[0], part[-1], len(part) - 1
        cu_seqlens = None
        if documents > 1:
            cu_seqlens = torch.tensor(part, device=tokens.device) - begin
            state = None if state is None else model.zeros(documents).insert([0], state)
        features, state = model.hidden(tokens[:, begin:end], state, cu_seqlens=cu_seqlens)
        total += _nats(model, features, tokens[:, begin + 1 : end + 1])
        if end < length:
            state = None  # the next part begins with a document
        elif state is not None and documents > 1:
            state = state.select([documents - 1])
    return total, state


def _nats(model: LanguageModel, features: Tensor, targets: Tensor) -> float:
    """Summed -ln p of targets [B,T] under features [B,T,D], a bounded number of logits at a time."""
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    for part, wanted in zip(features.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True):
        logits = model.logits(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="none").sum(dtype=torch.float64)
    return total.item()


def _read(model: LanguageModel, corpus: Corpus, start: int, stop: int) -> Tensor:
    """Inputs [start, stop) and the target after each: ids [1, stop - start + 1] on the model's device."""
    tokens = torch.from_numpy(corpus.read(start, stop - start + 1))
    model.check_tokens(tokens)
    return tokens.to(model.device).unsqueeze(0)


def _targets(corpus: Corpus) -> int:
    refuse(corpus.n_tokens < 2, f"a text of {corpus.n_tokens} tokens has nothing to predict; it takes at least 2")
    return corpus.n_tokens - 1


def _result(name: str, total: float, corpus: Corpus) -> Perplexity:
    tokens = corpus.n_tokens - 1
    nats = total / tokens
    bits = nats * corpus.n_tokens / corpus.text_bytes / math.log(2) if corpus.text_bytes else None
    power = math.exp(nats) if nats < 709 else math.inf + nats  # beyond a double's range; NaN stays NaN
    return Perplexity(name, nats, tokens, bits, power)
