"""Loss by position: what a model gains from having read more, and whether it stands what it was never trained on.

A text is cut into disjoint pieces of `length` tokens that never cross a document's end; each is read from a zero state
that is then carried to the piece's end. The token at position p has p tokens before it. Positions fall into buckets
[1, 2), [2, 4), ... that double, and every bucket is a mean over the same pieces, so that buckets differ in nothing but
how much was read before.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn2.errors import UserError
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

LOGITS_AT_ONCE = 1 << 24  # elements


@dataclass(frozen=True)
class Bucket:
    """Positions first <= p < stop: tokens with so many tokens before them."""

    first: int
    stop: int
    nats_per_token: float
    stderr: float
    """Of that mean, over pieces; NaN for a single one."""
    perplexity: float
    tokens: int


def pieces(corpus: Any, length: int, limit: int | None = None) -> list[int]:
    """Where pieces of `length` tokens start in a corpus; none at all is a `UserError` that says what would fit."""
    refuse(length < 2, f"--length is {length}; it must be at least 2")
    refuse(limit is not None and limit < 1, f"--limit is {limit}; it must be at least 1")
    starts = [*corpus.starts_between(0, corpus.n_tokens).tolist(), corpus.n_tokens]
    starts = starts if starts[0] == 0 else [0, *starts]
    found, longest = [], 0
    for begin, end in pairwise(starts):
        longest = max(longest, end - begin)
        found += range(begin, end - length + 1, length)
    if not found:
        raise UserError(f"no document has {length:,} tokens: the longest has {longest:,}; give a smaller --length")
    return found[:limit]


def by_position(
    model: LanguageModel,
    corpus: Any,
    starts: list[int],
    length: int,
    *,
    batch_size: int = 8,
    segment: int = 1024,
    progress: Progress = silent,
) -> list[Bucket]:
    """Mean loss in buckets of position over pieces of a corpus.

    Args:
        model: read in evaluation mode, given back in the mode it had.
        corpus: a `hgrn2.data.corpus.Corpus`.
        starts: of the pieces, from `pieces`.
        length: tokens of each.
        batch_size: pieces read side by side.
        segment: tokens read at a time; it changes speed and memory, not the numbers.
        progress: told "reading", tokens read so far, all of them.
    """
    refuse(batch_size < 1, f"batch_size is {batch_size}; it must be at least 1")
    refuse(segment < 1, f"segment is {segment}; it must be at least 1")
    losses = np.empty((len(starts), length - 1))
    with reading(model):
        for row in range(0, len(starts), batch_size):
            chosen = starts[row : row + batch_size]
            tokens = torch.from_numpy(np.stack([corpus.read(start, length) for start in chosen]))
            model.check_tokens(tokens)
            tokens, state = tokens.to(model.device), None
            for begin in range(0, length - 1, segment):
                end = min(begin + segment, length - 1)
                features, state = model.hidden(tokens[:, begin:end], state)
                losses[row : row + len(chosen), begin:end] = _losses(model, features, tokens[:, begin + 1 : end + 1])
                progress("reading", row * (length - 1) + len(chosen) * end, losses.size)
    return buckets(losses)


def buckets(losses: np.ndarray) -> list[Bucket]:
    """Losses [pieces, length - 1], of the tokens at positions 1, 2, ..., as buckets that double."""
    found = []
    for exponent in range(math.ceil(math.log2(losses.shape[1] + 1))):
        first, stop = 1 << exponent, min(1 << (exponent + 1), losses.shape[1] + 1)
        part = losses[:, first - 1 : stop - 1]
        means = part.mean(axis=1)
        error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
        nats = float(part.mean())
        power = math.exp(nats) if nats < 709 else math.inf + nats
        found.append(Bucket(first, stop, nats, error, power, part.size))
    return found


def _losses(model: LanguageModel, features: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """-ln p of targets [B,T] under features [B,T,D], a bounded number of logits at a time."""
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    found = []
    for part, wanted in zip(features.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True):
        logits = model.logits(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        found.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double())
    return torch.cat(found).view(targets.shape).cpu().numpy()


def draw(found: list[Bucket], path: Path, *, title: str, trained_on: int | None = None) -> None:
    """The buckets as a PNG: loss against position, with the length of training sequences marked where it is known."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'hgrn2[plot]'") from None
    from hgrn2.files import atomic_path
    from hgrn2.report import plotting

    with mpl.rc_context(plotting.style()):
        figure, axes = plotting.new_axes((6.4, 3.8))
        x = [math.sqrt(one.first * max(one.first, one.stop - 1)) for one in found]
        y = np.array([one.nats_per_token for one in found])
        error = np.array([0.0 if math.isnan(one.stderr) else 2 * one.stderr for one in found])
        axes.fill_between(x, y - error, y + error, color=plotting.BLUE, alpha=0.2, linewidth=0)
        axes.plot(
            x, y, "-o", color=plotting.BLUE, markersize=4, linewidth=1.6, label="state carried, ±2 standard errors"
        )
        if trained_on is not None:
            label = f"length of training sequences ({trained_on:,})"
            axes.axvline(trained_on, color=plotting.ORANGE, linestyle="--", linewidth=1.2, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks([one.first for one in found], [f"{one.first:,}" for one in found], rotation=30)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("position: tokens read before the predicted one (a point for each doubling)")
        axes.set_ylabel("mean loss (nats/token)")
        axes.set_title(title, fontsize=9.5)
        axes.legend()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160, facecolor="white")
