"""ListOps: nested lists of digits under MIN, MAX, MED and SUM_MOD, whose value is a digit.

The grammar and its distribution are the published ones (Nangia and Bowman 2018, arXiv 1804.06028; Long Range Arena,
arXiv 2011.04006, whose numbers stand in google-research/long-range-arena, lra_benchmarks/data/listops.py): a node above
depth 10 is an operator with probability 1/4, otherwise a digit; an operator has 2 to 10 arguments, evenly; trees whose
length lies strictly between 500 and 2,000 tokens are kept, brackets counted, parentheses not; 96,000, 2,000 and 2,000
examples. MED of an even number of digits is the mean of the two middle ones, rounded down.

Nearly all trees are too short. Trees are therefore grown a forest at a time, level by level, which needs no recursion.
A root that is a digit is never long enough, so roots are operators from the start: the kept trees are the same in law.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hgrn2.data.classes import Described, Examples, examples_of
from hgrn2.data.lra.parallel import EASY, SPLITS, counts_of, iterate_blocks
from hgrn2.data.reading import open_binary
from hgrn2.errors import UserError
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse, settings

PUBLISHED_COUNTS = (96_000, 2_000, 2_000)
WORDS = ("<pad>", *map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")
IDS = {word: index for index, word in enumerate(WORDS)}
FIRST_OPERATOR, END = IDS["[MIN"], IDS["]"]
BLOCK = 64  # examples made together; part of what a seed means
FOREST = 128  # trees grown at once
CHECKED = 32  # examples of a file whose target is computed again


@settings
class ListOps:
    """The published numbers; smaller ones make an easier task."""

    max_depth: int = 10
    """Nested operators at most."""
    max_args: int = 10
    """Arguments of an operator at most."""
    min_length: int = 500
    """Kept trees are longer than this."""
    max_length: int = 2000
    """Kept trees are shorter than this."""
    operator_chance: float = 0.25
    """Probability that an argument is an operator rather than a digit."""

    def __post_init__(self) -> None:
        refuse(self.max_depth < 2, f"max_depth must be at least 2, not {self.max_depth}")
        refuse(self.max_args < 2, f"max_args must be at least 2, not {self.max_args}")
        refuse(not 0 < self.operator_chance < 1, f"operator_chance must lie in (0, 1), not {self.operator_chance}")
        refuse(self.max_length < self.min_length + 2, f"no length lies between {self.min_length} and {self.max_length}")
        refuse(self.max_length < 5, f"max_length must be at least 5, not {self.max_length}")
        refuse(self.longest <= self.min_length, f"no tree is longer than {self.min_length} tokens under these settings")

    @property
    def longest(self) -> int:
        """Tokens of the largest tree."""
        return sum(2 * self.max_args**level for level in range(self.max_depth - 1)) + self.max_args ** (
            self.max_depth - 1
        )


def short(settings: ListOps) -> ListOps:
    """Trees of the same grammar, a tenth as long: 20 to 200 tokens instead of 500 to 2,000."""
    most = max(5, settings.max_length // 10)
    return replace(settings, min_length=min(20, settings.min_length // 10, most - 2), max_length=most)


def value_of(tokens: np.ndarray) -> int:
    """The digit that an expression stands for; one that is not an expression is a `UserError`."""
    stack: list[tuple[int, list[int]]] = [(END, [])]
    for token in np.asarray(tokens).tolist():
        if FIRST_OPERATOR <= token < END:
            stack.append((token, []))
        elif token == END:
            refuse(len(stack) < 2 or not stack[-1][1], "a ListOps expression closes a list that has no arguments")
            operator, arguments = stack.pop()
            stack[-1][1].append(_apply(operator, arguments))
        else:
            refuse(not 1 <= token <= 10, f"token id {token} is not one of ListOps")
            stack[-1][1].append(token - 1)
    refuse(len(stack) != 1 or len(stack[0][1]) != 1, "a ListOps expression is incomplete")
    return stack[0][1][0]


def _apply(operator: int, arguments: list[int]) -> int:
    word = WORDS[operator]
    if word == "[MIN":
        return min(arguments)
    if word == "[MAX":
        return max(arguments)
    if word == "[SM":
        return sum(arguments) % 10
    middle, ordered = len(arguments) // 2, sorted(arguments)
    return ordered[middle] if len(arguments) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


def make_listops(
    settings: ListOps, *, seed: int = 0, count: tuple[int, ...] | None = None, easy: int = 0, workers: int = 1,
    progress: Progress = silent,
) -> tuple[Described, dict[str, Examples]]:  # fmt: skip
    """Generate the three splits, and one of `easy` shorter trees (`short`) where there are to be some; the first
    examples of a split do not depend on how many are asked for."""
    splits = {}
    for split, wanted in counts_of(count, PUBLISHED_COUNTS, easy, settings.min_length).items():
        grown = short(settings) if split == EASY else settings
        blocks = iterate_blocks(
            partial(_grow_block, grown), seed=seed, split=split, blocks=-(-wanted // BLOCK), workers=workers,
            progress=progress,
        )  # fmt: skip
        pairs = [pair for block in blocks for pair in block][:wanted]
        splits[split] = examples_of((tokens for tokens, _ in pairs), (value for _, value in pairs))
    described = Described(
        task="listops", classes=tuple(map(str, range(10))), vocab_size=len(WORDS), seed=seed, settings=vars(settings),
        origin="own generator, published grammar and distribution" + (
            f", and {easy:,} trees of a tenth of the length to begin with" if easy else ""),
    )  # fmt: skip
    return described, splits


def _grow_block(settings: ListOps, random: np.random.Generator) -> list[tuple[np.ndarray, int]]:
    found: list[tuple[np.ndarray, int]] = []
    for _ in range(20_000):  # a setting that almost never gives a tree must not run for ever
        found += _grow_forest(settings, random)
        if len(found) >= BLOCK:
            return found[:BLOCK]
    raise UserError(f"trees between {settings.min_length} and {settings.max_length} tokens are too rare here")


@dataclass(frozen=True)
class Level:
    """The nodes of one depth, in the order of their parents: words [n] and numbers of arguments [n]."""

    words: np.ndarray
    arguments: np.ndarray

    def only(self, kept: np.ndarray) -> "Level":
        """Some of the nodes."""
        return Level(self.words[kept], self.arguments[kept])


def _grow_forest(settings: ListOps, random: np.random.Generator) -> list[tuple[np.ndarray, int]]:
    """Grow FOREST trees and return those of a wanted length: tokens [T] and value of each."""
    owner = np.arange(FOREST)  # the tree of each node of the level
    lengths = np.zeros(FOREST, dtype=np.int64)
    levels: list[tuple[np.ndarray, Level]] = []
    for depth in range(1, settings.max_depth + 1):
        operator = random.random(len(owner)) < (1.0 if depth == 1 else settings.operator_chance)
        if depth == settings.max_depth:
            operator[:] = False
        arguments = np.where(operator, random.integers(2, settings.max_args + 1, len(owner)), 0)
        words = np.where(operator, random.integers(FIRST_OPERATOR, END, len(owner)), random.integers(1, 11, len(owner)))
        lengths += np.bincount(owner, weights=1 + operator, minlength=FOREST).astype(np.int64)
        alive = (lengths < settings.max_length)[owner]  # a tree that is already too long grows no more
        arguments = np.where(alive, arguments, 0)
        levels.append((owner, Level(words, arguments)))
        owner = np.repeat(owner, arguments)
        if not len(owner):
            break
    good = (lengths > settings.min_length) & (lengths < settings.max_length)
    if not good.any():
        return []
    tokens, values = _written([level.only(good[owner]) for owner, level in levels])
    return list(zip(np.split(tokens, np.cumsum(lengths[good])[:-1]), values.tolist(), strict=True))


def _written(levels: list[Level]) -> tuple[np.ndarray, np.ndarray]:
    """All trees of the levels in reading order, end to end, and the value of each.

    Sizes and values are found from the leaves to the roots, then places from the roots to the leaves: a node stands
    behind its parent and those siblings that come before it.
    """
    sizes, values = [np.zeros(0, dtype=np.int64)], np.zeros(0, dtype=np.int64)
    for level in reversed(levels):
        operator = level.arguments > 0
        size, value = np.ones(len(operator), dtype=np.int64), level.words.astype(np.int64) - 1
        if operator.any():
            counts = level.arguments[operator]
            size[operator] = 2 + np.add.reduceat(sizes[0], np.cumsum(counts) - counts)
            value[operator] = _values(level.words[operator], counts, values)
        sizes.insert(0, size)
        values = value
    tokens = np.zeros(sizes[0].sum(), dtype=np.uint8)
    place = np.cumsum(sizes[0]) - sizes[0]
    for level, size, below in zip(levels, sizes, sizes[1:], strict=False):
        operator = level.arguments > 0
        tokens[place] = level.words
        tokens[(place + size - 1)[operator]] = END
        before = np.cumsum(below) - below  # tokens of all nodes before it on its level, of which the siblings' count
        first = (np.cumsum(level.arguments) - level.arguments)[operator]
        place = before + np.repeat(place[operator] + 1 - before[first], level.arguments[operator])
    return tokens, values


def _values(words: np.ndarray, counts: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """Values [n] of the operators `words` [n], the first having the first counts[0] of the arguments, and so on."""
    first = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(counts)), counts)
    ordered = np.sort(10 * owner + arguments) % 10  # the arguments of each operator by size
    median = (ordered[first + (counts - 1) // 2] + ordered[first + counts // 2]) // 2
    every = (ordered[first], ordered[first + counts - 1], median, np.add.reduceat(arguments, first) % 10)
    return np.choose(words - FIRST_OPERATOR, every)


def read_listops(path: Path, progress: Progress = silent) -> Examples:
    """Examples of a published .tsv file: header `Source<TAB>Target`, parentheses in the text ignored.

    Of the first examples the target is checked to be the value of the expression.
    """
    sequences, labels = [], []
    with open_binary(path) as opened:
        header = opened.stream.readline().decode("utf-8", "replace").rstrip("\r\n")
        refuse(header != "Source\tTarget", f"{path}: the header is {header[:60]!r} instead of 'Source<TAB>Target'")
        for number, raw in enumerate(opened.stream, 2):
            source, _, target = raw.decode("utf-8", "replace").rstrip("\r\n").partition("\t")
            refuse(target not in WORDS[1:11], f"{path}, line {number}: the target {target[:20]!r} is not a digit")
            words = source.replace("( ", "").replace(" )", "").split()
            try:
                sequences.append(np.array([IDS[word] for word in words], dtype=np.uint8))
            except KeyError as unknown:
                raise UserError(f"{path}, line {number}: {unknown.args[0][:20]!r} is not a word of ListOps") from None
            labels.append(int(target))
            if len(labels) <= CHECKED:
                value = value_of(sequences[-1])
                refuse(value != labels[-1], f"{path}, line {number}: the target is {target}, the value is {value}")
            if len(labels) % 1000 == 0:
                progress(f"reading {path.name}", len(labels), 0)
    refuse(not labels, f"{path} has a header and no examples")
    return examples_of(sequences, labels)


def read_published(folder: Path, progress: Progress = silent) -> tuple[Described, dict[str, Examples]]:
    """The published files of a folder: basic_train.tsv, basic_val.tsv and basic_test.tsv."""
    paths = {split: folder / f"basic_{name}.tsv" for split, name in zip(SPLITS, ("train", "val", "test"), strict=True)}
    missing = [path.name for path in paths.values() if not path.is_file()]
    refuse(bool(missing), f"{folder} holds no {', '.join(missing)} (the published ListOps files)")
    described = Described(
        task="listops", classes=tuple(map(str, range(10))), vocab_size=len(WORDS), origin="files in the published form"
    )
    return described, {split: read_listops(path, progress) for split, path in paths.items()}
