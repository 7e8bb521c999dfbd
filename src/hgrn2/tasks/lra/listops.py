"""ListOps: nested lists of digits under MIN, MAX, MED and SUM_MOD, whose value is a digit.

The grammar and its distribution are the published ones (Nangia and Bowman 2018, arXiv 1804.06028; Long Range Arena,
arXiv 2011.04006, whose numbers stand in google-research/long-range-arena, lra_benchmarks/data/listops.py): a node above
depth 10 is an operator with probability 1/4, otherwise a digit; an operator has 2 to 10 arguments, evenly; trees whose
length lies strictly between 500 and 2,000 tokens are kept, brackets counted, parentheses not; 96,000, 2,000 and 2,000
examples. MED of an even number of digits is the mean of the two middle ones, rounded down.

Nearly all trees are too short. Trees are therefore grown a forest at a time, level by level, which needs no recursion.
A root that is a digit is never long enough, so roots are operators from the start: the kept trees are the same in law.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hgrn2.data.classes import Described, Examples, examples_of
from hgrn2.data.reading import open_binary
from hgrn2.errors import UserError
from hgrn2.settings import refuse
from hgrn2.tasks.lra.parallel import Progress, counts_of, make_blocks

PUBLISHED_COUNTS = (96_000, 2_000, 2_000)
WORDS = ("<pad>", *map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")
IDS = {word: index for index, word in enumerate(WORDS)}
FIRST_OPERATOR, END = IDS["[MIN"], IDS["]"]
BLOCK = 64  # examples made together; part of what a seed means
FOREST = 128  # trees grown at once


@dataclass(frozen=True, kw_only=True)
class ListOps:
    """The published numbers; smaller ones make an easier task."""

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    """Kept trees are longer than this."""
    max_length: int = 2000
    """Kept trees are shorter than this."""
    operator_chance: float = 0.25

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
    settings: ListOps, *, seed: int = 0, count: tuple[int, ...] | None = None, workers: int = 1,
    progress: Progress | None = None,
) -> tuple[Described, dict[str, Examples]]:  # fmt: skip
    """Generate the three splits; the first examples of a split do not depend on how many are asked for."""
    splits = {}
    for split, wanted in counts_of(count, PUBLISHED_COUNTS).items():
        blocks = make_blocks(
            partial(_grow_block, settings), seed=seed, split=split, blocks=-(-wanted // BLOCK), workers=workers,
            progress=progress,
        )  # fmt: skip
        sequences = [sequence for block in blocks for sequence in block][:wanted]
        splits[split] = examples_of(sequences, map(value_of, sequences))
    described = Described(
        task="listops", classes=tuple(map(str, range(10))), vocab_size=len(WORDS), seed=seed, settings=vars(settings),
        origin="own generator, published grammar and distribution",
    )  # fmt: skip
    return described, splits


def _grow_block(settings: ListOps, random: np.random.Generator) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for _ in range(20_000):  # a setting that almost never gives a tree must not run for ever
        found += _grow_forest(settings, random)
        if len(found) >= BLOCK:
            return found[:BLOCK]
    raise UserError(f"trees between {settings.min_length} and {settings.max_length} tokens are too rare here")


def _grow_forest(settings: ListOps, random: np.random.Generator) -> list[np.ndarray]:
    """Grow FOREST trees and return those of a wanted length, each as tokens [T]."""
    owner = np.arange(FOREST)  # the tree of each node of the level
    lengths = np.zeros(FOREST, dtype=np.int64)
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for depth in range(1, settings.max_depth + 1):
        operator = random.random(len(owner)) < (1.0 if depth == 1 else settings.operator_chance)
        if depth == settings.max_depth:
            operator[:] = False
        arguments = np.where(operator, random.integers(2, settings.max_args + 1, len(owner)), 0)
        words = np.where(operator, random.integers(FIRST_OPERATOR, END, len(owner)), random.integers(1, 11, len(owner)))
        lengths += np.bincount(owner, weights=1 + operator, minlength=FOREST).astype(np.int64)
        alive = (lengths < settings.max_length)[owner]  # a tree that is already too long grows no more
        arguments = np.where(alive, arguments, 0)
        levels.append((owner, words, arguments))
        owner = np.repeat(owner, arguments)
        if not len(owner):
            break
    good = np.flatnonzero((lengths > settings.min_length) & (lengths < settings.max_length))
    return [_written(levels, int(tree)) for tree in good]


def _written(levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]], tree: int) -> np.ndarray:
    """One tree of a forest in reading order: a stack of (level, first child, children left)."""
    own = [(words[owner == tree].tolist(), arguments[owner == tree].tolist()) for owner, words, arguments in levels]
    taken = [0] * (len(own) + 1)  # children are laid out in their parents' order, so each level is read left to right
    tokens: list[int] = []
    pending = [1]  # nodes still to be read at each open level
    while pending:
        if pending[-1] == 0:
            pending.pop()
            if pending:
                tokens.append(END)
            continue
        pending[-1] -= 1
        level = len(pending) - 1
        place = taken[level]
        taken[level] += 1
        tokens.append(own[level][0][place])
        if own[level][1][place]:
            pending.append(own[level][1][place])
    return np.array(tokens, dtype=np.uint8)


def read_listops(path: Path) -> Examples:
    """Examples of a published .tsv file: header `Source<TAB>Target`, parentheses in the text ignored."""
    sequences, labels = [], []
    with open_binary(path) as opened:
        header = opened.stream.readline().decode("utf-8", "replace").rstrip("\r\n")
        refuse(header != "Source\tTarget", f"{path}: the header is {header[:60]!r} instead of 'Source<TAB>Target'")
        for number, raw in enumerate(opened.stream, 2):
            source, _, target = raw.decode("utf-8", "replace").rstrip("\r\n").partition("\t")
            refuse(target not in WORDS[1:11], f"{path}, line {number}: the target {target[:20]!r} is not a digit")
            words = [word for word in source.split() if word not in ("(", ")")]
            unknown = next((word for word in words if word not in IDS or word == "<pad>"), None)
            refuse(unknown is not None, f"{path}, line {number}: {str(unknown)[:20]!r} is not a word of ListOps")
            sequences.append(np.array([IDS[word] for word in words], dtype=np.uint8))
            labels.append(int(target))
    refuse(not labels, f"{path} has a header and no examples")
    return examples_of(sequences, labels)
