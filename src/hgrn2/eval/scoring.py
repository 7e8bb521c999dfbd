"""How probable a model finds given continuations of given contexts: what zero-shot tasks ask for, thousands of times.

The choices of a question share their context. A recurrent model reads it once and goes on from copies of its state,
one a choice, at a cost that does not depend on how long the context was:

    whole     input = context + continuation but its last token; every request is read from its beginning
    forked    prefix read once -> state; each request reads only what follows the prefix, from a copy of that state

Both give the same numbers to float rounding. A call reads any number of sequences packed one after the other, with
the state reset or set at each boundary (`cu_seqlens`): nothing is padded, so nothing needs a mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

TOKENS_AT_ONCE = 8192
"""Of one call; a longer sequence is read in segments of this size."""
LOGITS_AT_ONCE = 1 << 24  # elements: 64 MB of float32, whatever the vocabulary


@dataclass(frozen=True)
class Request:
    """How probable is `continuation` after `context`? Token ids; the context has at least one, which may be the
    tokenizer's end of document."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def input(self) -> tuple[int, ...]:
        """What the model reads: all but the last token, which is only predicted."""
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class Score:
    """The answer to a request."""

    log_probability: float
    """Sum over the continuation of ln p(token | everything before it)."""
    greedy: bool
    """Whether every token of the continuation is the most probable one at its place."""


@dataclass(frozen=True)
class Group:
    """Requests (by index) whose contexts begin with the same `prefix`, which is read once for all of them."""

    prefix: tuple[int, ...]
    members: tuple[int, ...]


def score(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    share: bool = True,
    batch_size: int = 32,
    progress: Progress = silent,
) -> list[Score]:
    """The score of every request, in their order.

    Args:
        model: read in evaluation mode, given back in the mode it had. Logits are taken in float32 (float64 for a
            float64 model), sums in float64.
        requests: with contexts of at least one token; an empty continuation has probability 1.
        share: read what several contexts have in common once. Without it every request is read from its beginning.
        batch_size: sequences of one call, at most: it bounds the states in memory. `TOKENS_AT_ONCE` bounds the rest.
        progress: told "scoring", requests scored so far, all of them.
    """
    refuse(batch_size < 1, f"batch_size is {batch_size}; it must be at least 1")
    refuse(any(not request.context for request in requests), "a request has an empty context; nothing predicts a start")
    used = [index for index, request in enumerate(requests) if request.continuation]
    if used:
        lows, highs = zip(*(_range(requests[index]) for index in used), strict=True)
        model.check_tokens(torch.tensor([min(lows), max(highs)]))
    tally = _Tally(len(requests), progress)
    tally.tell(len(requests) - len(used))
    groups = plan(requests, used) if share else [Group((), (index,)) for index in used]
    with reading(model):
        forked = [group for group in groups if len(group.members) > 1]
        sizes = [(len(group.prefix), len(group.members)) for group in forked]
        for chosen in _batches(sizes, batch_size):
            _score_forked(model, requests, [forked[n] for n in chosen], batch_size, tally)
        alone = [group.members[0] for group in groups if len(group.members) == 1]
        for chosen in _batches([(len(requests[index].input), 1) for index in alone], batch_size):
            _score_whole(model, requests, [alone[n] for n in chosen], tally)
    return tally.scores()


def plan(requests: Sequence[Request], indices: Sequence[int]) -> list[Group]:
    """Groups of requests that are cheaper to read together.

    Equal contexts always are. Contexts that only begin alike (two readings of a sentence) join where the tokens that
    this saves are at least half of the prefix: a few common words at the start are not worth a common state.
    """
    groups: list[Group] = []
    for index in sorted(indices, key=lambda n: requests[n].context):
        context = requests[index].context
        if groups:
            last = groups[-1]
            common = _common(last.prefix, context)
            # One reader more of `common` tokens saves them; every member then reads the prefix's end by itself.
            saved = common - (len(last.members) - 1) * (len(last.prefix) - common)
            if 2 * saved >= len(last.prefix) and common:
                groups[-1] = Group(last.prefix[:common], (*last.members, index))
                continue
        groups.append(Group(context, (index,)))
    return groups


def tokens_read(requests: Sequence[Request], *, share: bool) -> int:
    """How many tokens `score` reads."""
    used = [index for index, request in enumerate(requests) if request.continuation]
    if not share:
        return sum(len(requests[index].input) for index in used)
    total = 0
    for group in plan(requests, used):
        begin = len(group.prefix) if len(group.members) > 1 else 0
        total += begin + sum(len(requests[index].input) - begin for index in group.members)
    return total


class _Tally:
    """Sums of log-probabilities and whether all tokens were the most probable ones, by request."""

    def __init__(self, count: int, progress: Progress) -> None:
        self._nats = np.zeros(count)
        self._greedy = np.ones(count, dtype=bool)
        self._progress = progress
        self._done = 0

    def add(
        self,
        model: LanguageModel,
        features: Tensor,
        targets: Sequence[int],
        owners: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> None:
        """Features [R,D] predict the tokens `targets` [N] of the requests `owners` [N]: target n is predicted by row
        rows[n], or by row n where `rows` (rising) is not given."""
        wanted = torch.tensor(targets, device=features.device)
        places = torch.tensor(rows if rows is not None else range(len(targets)), device=features.device)
        height = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
        nats, best = [], []
        for begin in range(0, len(features), height):
            logits = model.logits(features[begin : begin + height])
            logits = logits if logits.dtype == torch.float64 else logits.float()
            low, high = torch.searchsorted(places, torch.tensor([begin, begin + height], device=places.device)).tolist()
            ids, place = wanted[low:high], places[low:high] - begin
            nats.append(logits.log_softmax(-1)[place, ids].double())  # on a CPU four times as fast as logsumexp
            best.append(logits.argmax(-1)[place] == ids)
        np.add.at(self._nats, owners, torch.cat(nats).cpu().numpy())
        np.logical_and.at(self._greedy, owners, torch.cat(best).cpu().numpy())

    def tell(self, more: int) -> None:
        """So many more requests are done."""
        self._done += more
        if more:
            self._progress("scoring", self._done, len(self._nats))

    def scores(self) -> list[Score]:
        return [Score(float(nats), bool(greedy)) for nats, greedy in zip(self._nats, self._greedy, strict=True)]


def _score_whole(model: LanguageModel, requests: Sequence[Request], chosen: Sequence[int], tally: _Tally) -> None:
    """Requests read from their beginning."""
    _score_inputs(model, requests, [(index, 0) for index in chosen], None, tally)
    tally.tell(len(chosen))


def _score_forked(
    model: LanguageModel, requests: Sequence[Request], groups: Sequence[Group], batch_size: int, tally: _Tally
) -> None:
    """Groups whose prefixes are read once, each request then from a copy of the state after its prefix."""
    ends: list[Tensor] = []
    state: ModelState | None = None
    for _, rows, after in _read(model, [group.prefix for group in groups], None):
        ends, state = [row[-1:] for row in rows], after
    if state is None:
        raise AssertionError("prefixes have at least one token")
    members = [(number, index) for number, group in enumerate(groups) for index in group.members]
    # Where the prefix is the whole context, its last feature predicts the first token of the continuation.
    direct = [
        (number, index) for number, index in members if len(groups[number].prefix) == len(requests[index].context)
    ]
    if direct:
        firsts = [requests[index].continuation[0] for _, index in direct]
        tally.add(model, torch.cat(ends), firsts, [index for _, index in direct], [number for number, _ in direct])
    rests = [(n, index) for n, index in members if len(groups[n].prefix) < len(requests[index].input)]
    sizes = [(len(requests[index].input) - len(groups[n].prefix), 1) for n, index in rests]
    for chosen in _batches(sizes, batch_size):
        part = [rests[n] for n in chosen]
        fork = state.select([number for number, _ in part])
        _score_inputs(model, requests, [(index, len(groups[n].prefix)) for n, index in part], fork, tally)
    tally.tell(len(members))


def _score_inputs(
    model: LanguageModel,
    requests: Sequence[Request],
    parts: Sequence[tuple[int, int]],
    state: ModelState | None,
    tally: _Tally,
) -> None:
    """Read inputs and add up what they predict.

    Args:
        parts: (request, how many tokens of its input lie before the state given).
        state: of each part, or None for a zero state.
    """
    for begin, rows, _ in _read(model, [requests[index].input[start:] for index, start in parts], state):
        kept, targets, owners = [], [], []
        for (index, start), found in zip(parts, rows, strict=True):
            request = requests[index]
            # The token read at place p of the input predicts token p - shift of the continuation.
            shift = len(request.context) - 1
            first = max(shift, start + begin)
            stop = start + begin + len(found)
            if first < stop:
                kept.append(found[first - start - begin :])
                targets += request.continuation[first - shift : stop - shift]
                owners += [index] * (stop - first)
        if kept:
            tally.add(model, torch.cat(kept), targets, owners)


def _read(
    model: LanguageModel, sequences: Sequence[tuple[int, ...]], state: ModelState | None
) -> Iterator[tuple[int, list[Tensor], ModelState | None]]:
    """Read sequences packed in one call, or one long sequence in several: (where the call begins in it, features
    [T,D] of each sequence, their states after it)."""
    device = model.device
    if len(sequences) == 1:
        tokens = torch.tensor(sequences[0], device=device)
        for begin in range(0, len(tokens), TOKENS_AT_ONCE):
            features, state = model.hidden(tokens[None, begin : begin + TOKENS_AT_ONCE], state)
            yield begin, [features[0]], state
        return
    lengths = [len(sequence) for sequence in sequences]
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()], device=device)
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    features, state = model.hidden(tokens[None], state, cu_seqlens=offsets)
    yield 0, list(features[0].split(lengths)), state


def _batches(sizes: Sequence[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Indices of sequences that are read in one call, given the (tokens, states) of each: as many as fit."""
    batch: list[int] = []
    tokens = states = 0
    for index, (length, wanted) in enumerate(sizes):
        if batch and (tokens + length > TOKENS_AT_ONCE or states + wanted > limit):
            yield batch
            batch, tokens, states = [], 0, 0
        batch.append(index)
        tokens, states = tokens + length, states + wanted
    if batch:
        yield batch


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(n for n in range(shorter) if one[n] != other[n])


def _range(request: Request) -> tuple[int, int]:
    ids = request.context + request.continuation
    return min(ids), max(ids)
