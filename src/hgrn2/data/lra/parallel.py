"""Generated examples in blocks: block n under a seed is the same whoever makes it, so workers only change the time."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from hgrn2.data.classes import Examples
from hgrn2.memory import refuse_too_big
from hgrn2.pool import Pool
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

Block = TypeVar("Block")
SPLITS = ("train", "valid", "test")
EASY = "easy"
"""A split of easier examples, to begin with; made where they are asked for."""


def random_of(seed: int, split: str, block: int) -> np.random.Generator:
    """The randomness of one block of one split."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, (*SPLITS, EASY).index(split), block))))


def iterate_blocks(
    make: Callable[[np.random.Generator], Block], *, seed: int, split: str, blocks: int, workers: int, first: int = 0,
    progress: Progress = silent,
) -> Iterator[Block]:  # fmt: skip
    """`make` for `blocks` blocks from number `first` on, in their order; over `workers` processes when more than one.

    `make` must be picklable: a function of a module, or a `partial` of one.
    """
    refuse(workers < 1, f"workers must be at least 1, not {workers}")
    numbers = range(first, first + blocks)
    return _iterate(partial(_block, make, seed, split), split, numbers, min(workers, max(1, blocks)), progress)


def _iterate(
    job: Callable[[int], Block], split: str, numbers: range, workers: int, progress: Progress
) -> Iterator[Block]:
    def told(results: Iterable[Block]) -> Iterator[Block]:
        for done, result in enumerate(results, 1):
            yield result
            progress(f"making {split}", done, len(numbers))

    if workers == 1:
        yield from told(map(job, numbers))
        return
    with Pool(job, numbers, workers) as pool:
        yield from told(pool.in_order())


def _block(make: Callable[[np.random.Generator], Block], seed: int, split: str, block: int) -> Block:
    return make(random_of(seed, split, block))


def counts_of(
    count: tuple[int, ...] | None, published: tuple[int, int, int], easy: int = 0, each: int = 1
) -> dict[str, int]:
    """Examples a split: as published, or as asked for: three numbers, or one for train (others in proportion). `easy`
    is how many easier ones come with them, `each` the bytes of an example at the least: more than memory is refused."""
    refuse(easy < 0, f"the number of easier examples must not be negative, not {easy}")
    more = {EASY: easy} if easy else {}
    if not count:
        return _fitting(dict(zip(SPLITS, published, strict=True)) | more, each)
    refuse(min(count) < 1, f"counts must be at least 1, not {min(count)}")
    refuse(len(count) not in (1, 3), f"give one count or three (train valid test), not {len(count)}")
    if len(count) == 1:
        count = (count[0], *(max(1, round(count[0] * part / published[0])) for part in published[1:]))
    return _fitting(dict(zip(SPLITS, count, strict=True)) | more, each)


def _fitting(counts: dict[str, int], each: int) -> dict[str, int]:
    total = sum(counts.values())
    refuse_too_big(total * each, f"{total:,} examples need", "give a smaller count")
    return counts


def as_dict(splits: list[Examples]) -> dict[str, Examples]:
    """Splits by name, in the order of `SPLITS`."""
    return dict(zip(SPLITS, splits, strict=True))
