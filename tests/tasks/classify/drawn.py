"""Examples drawn by chance: sequences, pairs of them, and images, each a folder as the data verbs write it."""

from pathlib import Path

import numpy as np

from hgrn2.data.classes import Described, Examples, examples_of, write_examples

CLASSES = ("low", "middle", "high")


def drawn_sequences(count: int, seed: int = 0, *, pair: bool = False) -> Examples:
    """Tokens 1 … 19 in lengths of 3 to 40; the class is the third of the alphabet that most tokens are of."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    length = random.integers(3, 41, count)
    tokens = [(6 * label + random.integers(1, 8, n)).astype(np.uint16) for label, n in zip(labels, length, strict=True)]
    others = [(6 * label + random.integers(1, 8, 9)).astype(np.uint16) for label in labels]
    return examples_of(tokens, labels, "uint16", others if pair else None)


def drawn_images(count: int, seed: int = 0) -> Examples:
    """8 x 8 colour noise around a brightness that is the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    noise = random.integers(0, 90, (count, 8, 8, 3))
    return Examples(a=(noise + 80 * labels[:, None, None, None]).astype(np.uint8), labels=labels)


def write(folder: Path, splits: dict[str, Examples], vocab_size: int) -> Path:
    described = Described(task=folder.name, classes=CLASSES, vocab_size=vocab_size, origin="drawn by chance")
    write_examples(folder, described, splits)
    return folder
