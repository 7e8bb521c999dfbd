"""A mixture of corpora as it is written, FOLDER=WEIGHT for each, and what it comes to."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hgrn2.settings import refuse

PERIOD = 1 << 16
"""Sequences after which every corpus has had its share exactly, to the next of so many."""


class Share(NamedTuple):
    """One corpus of a mixture."""

    folder: str
    weight: float


def parse_mixture(written: Sequence[str]) -> tuple[Share, ...]:
    """The corpora with weights that sum to 1.

    Raises:
        UserError: names what is not FOLDER=WEIGHT, a weight that is no positive number or too small, and a corpus that
            is named twice.
    """
    found = []
    for text in written:
        folder, equals, number = text.rpartition("=")
        refuse(not equals or not folder, f"data.mixture: {text!r} has no weight; write FOLDER=WEIGHT for each corpus")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        good = math.isfinite(weight) and weight > 0
        refuse(not good, f"data.mixture: the weight of {folder} is {number!r}; it must be a positive number")
        found.append(Share(folder, weight))
    places = [Path(share.folder).resolve() for share in found]
    twice = next((share.folder for share, place in zip(found, places, strict=True) if places.count(place) > 1), None)
    refuse(twice is not None, f"data.mixture names {twice} twice; give it the sum of both weights")
    largest = max((share.weight for share in found), default=1.0)
    total = sum(share.weight / largest for share in found)
    shares = tuple(Share(share.folder, share.weight / largest / total) for share in found)
    for share in shares:
        small = share.weight < 1 / PERIOD
        refuse(small, f"data.mixture: {share.folder} has a share of {share.weight:.2g}; the smallest is 1/{PERIOD:,}")
    return shares


def quotas(weights: Sequence[float]) -> list[int]:
    """How many of `PERIOD` sequences each weight has, at least one, by largest remainders."""
    exact = [weight * PERIOD for weight in weights]
    found = [max(1, int(one)) for one in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: found[n] - exact[n])
    for turn in range(PERIOD - sum(found)):
        found[by_remainder[turn % len(found)]] += 1
    found[found.index(max(found))] += PERIOD - sum(found)  # where ones were rounded up
    return found
