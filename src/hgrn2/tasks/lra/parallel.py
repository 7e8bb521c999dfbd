"""Generated examples in blocks: block n under a seed is the same whoever makes it, so workers only change the time."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

import numpy as np

from hgrn2.data.classes import Examples
from hgrn2.errors import UserError
from hgrn2.settings import refuse

Block = TypeVar("Block")
Progress = Callable[[str, int, int], None]
SPLITS = ("train", "valid", "test")


def random_of(seed: int, split: str, block: int) -> np.random.Generator:
    """The randomness of one block of one split."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, SPLITS.index(split), block))))


def make_blocks(
    make: Callable[[np.random.Generator], Block], *, seed: int, split: str, blocks: int, workers: int,
    progress: Progress | None = None,
) -> list[Block]:  # fmt: skip
    """`make` for blocks 0 to `blocks` - 1, in their order; over `workers` processes when more than one.

    `make` must be picklable: a function of a module, or a `partial` of one.
    """
    refuse(workers < 1, f"workers must be at least 1, not {workers}")
    job, found = partial(_block, make, seed, split), []

    def collect(results: Any) -> list[Block]:
        for result in results:
            found.append(result)
            if progress:
                progress(f"making {split}", len(found), blocks)
        return found

    if workers == 1 or blocks == 1:
        return collect(map(job, range(blocks)))
    # spawned, not forked: a process that has started PyTorch's threads must not be forked
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, blocks), mp_context=spawn) as pool:
            return collect(pool.map(job, range(blocks)))
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended early; a script that makes data with several workers needs the usual "
            "`if __name__ == '__main__':` around its own code, or workers=1"
        ) from None


def _block(make: Callable[[np.random.Generator], Block], seed: int, split: str, block: int) -> Block:
    return make(random_of(seed, split, block))


def counts_of(count: tuple[int, ...] | None, published: tuple[int, int, int]) -> dict[str, int]:
    """Examples a split: as published, or as asked for: three numbers, or one for train (others in proportion)."""
    if not count:
        return dict(zip(SPLITS, published, strict=True))
    refuse(min(count) < 1, f"counts must be at least 1, not {min(count)}")
    refuse(len(count) not in (1, 3), f"give one count or three (train valid test), not {len(count)}")
    if len(count) == 1:
        count = (count[0], *(max(1, round(count[0] * part / published[0])) for part in published[1:]))
    return dict(zip(SPLITS, count, strict=True))


def as_dict(splits: list[Examples]) -> dict[str, Examples]:
    """Splits by name, in the order of `SPLITS`."""
    return dict(zip(SPLITS, splits, strict=True))
