"""Text (IMDb reviews as bytes) and Retrieval (pairs of texts as bytes): readers, and a stand-in for the pairs.

Bytes become ids 1 to 256; 0 is padding.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hgrn2.data.classes import Described, Examples, examples_of
from hgrn2.data.lra.parallel import SPLITS, counts_of, random_of
from hgrn2.data.permutation import keys, permute
from hgrn2.data.reading import open_binary
from hgrn2.errors import UserError
from hgrn2.files import parse_json
from hgrn2.settings import refuse

VOCABULARY = 257
STAND_IN_COUNTS = (20_000, 2_000, 2_000)


def bytes_of(text: str, limit: int) -> np.ndarray:
    """The first `limit` UTF-8 bytes as ids 1 to 256, uint16 [T]."""
    return np.frombuffer(text.encode("utf-8", "surrogatepass")[:limit], dtype=np.uint8).astype(np.uint16) + 1


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    with open_binary(path) as opened:
        for number, raw in enumerate(opened.stream, 1):
            yield number, parse_json(raw, f"{path}, line {number}", dict)


def _the_file(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    refuse(not found, f"{folder} holds no {pattern} ({what})")
    return found[0]


def read_reviews(path: Path, limit: int = 4096) -> Examples:
    """Reviews of a .jsonl file (also .xz or .gz) with the fields `text` and `label`, 0 or 1."""
    texts, labels = [], []
    for number, row in _rows(path):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or label not in (0, 1):
            raise UserError(f"{path}, line {number}: a review needs a text and a label of 0 or 1; label is {label!r}")
        texts.append(bytes_of(text, limit))
        labels.append(int(label))
    refuse(not labels, f"{path} holds no reviews")
    return examples_of(texts, labels, "uint16")


def take(examples: Examples, indices: np.ndarray) -> Examples:
    """Some examples (sequences, not pairs) as a set of their own."""
    if examples.a_offsets is None:
        return Examples(a=examples.a[indices], labels=examples.labels[indices])
    return examples_of([examples.first(i) for i in indices], examples.labels[indices], str(examples.a.dtype))


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Two parts, the second at least one and about a `fraction` of the examples, at random."""
    order = permute(np.arange(len(examples)), len(examples), keys(seed, np.array([0])))
    held = max(1, round(fraction * len(examples)))
    refuse(held >= len(examples), f"{len(examples)} examples cannot be divided")
    return take(examples, np.sort(order[held:])), take(examples, np.sort(order[:held]))


def make_text(folder: Path, *, seed: int = 0, limit: int = 4096) -> tuple[Described, dict[str, Examples]]:
    """IMDb from a folder that holds imdb-train*.jsonl* and imdb-test*.jsonl*; 5% of train becomes valid."""
    what = "training reviews; labelled texts of your own: hgrn2 train classify"
    train = read_reviews(_the_file(folder, "imdb-train*.jsonl*", what), limit)
    test = read_reviews(_the_file(folder, "imdb-test*.jsonl*", "test reviews"), limit)
    train, valid = hold_out(train, 0.05, seed)
    described = Described(
        task="text", classes=("negative", "positive"), vocab_size=VOCABULARY, seed=seed, settings={"limit": limit},
        origin=f"IMDb reviews, {len(train):,} for training (the published task has 25,000)",
    )  # fmt: skip
    return described, dict(zip(SPLITS, (train, valid, test), strict=True))


def read_pairs(path: Path, limit: int = 4000) -> Examples:
    """Pairs of a published AAN .tsv file: label, id 1, id 2, text 1, text 2, no header; the label is 0.0 or 1.0."""
    first, second, labels = [], [], []
    with open_binary(path) as opened:
        for number, raw in enumerate(opened.stream, 1):
            fields = raw.decode("utf-8", "replace").rstrip("\r\n").split("\t")
            refuse(
                len(fields) != 5,
                f"{path}, line {number} has {len(fields)} fields; a pair is label, id1, id2, text1, text2",
            )
            wrong = fields[0] not in ("0", "1", "0.0", "1.0")
            refuse(wrong, f"{path}, line {number}: the label {fields[0][:20]!r} is neither 0 nor 1 (is it a header?)")
            first.append(bytes_of(fields[3], limit))
            second.append(bytes_of(fields[4], limit))
            labels.append(int(float(fields[0])))
    refuse(not labels, f"{path} holds no pairs")
    return examples_of(first, labels, "uint16", seconds=second)


def make_retrieval(folder: Path, *, seed: int = 0, limit: int = 4000) -> tuple[Described, dict[str, Examples]]:
    """AAN from a folder that holds *.train.tsv, *.eval.tsv and *.test.tsv."""
    names = zip(SPLITS, ("train", "eval", "test"), strict=True)
    splits = {split: read_pairs(_the_file(folder, f"*.{name}.tsv", "AAN pairs"), limit) for split, name in names}
    described = Described(
        task="retrieval", classes=("unrelated", "related"), vocab_size=VOCABULARY, seed=seed,
        settings={"limit": limit}, origin="AAN pairs",
    )  # fmt: skip
    return described, splits


def make_stand_in(
    articles: Path, *, seed: int = 0, count: tuple[int, ...] | None = None, passage: int = 1000
) -> tuple[Described, dict[str, Examples]]:
    """Pairs of passages, `passage` bytes each, of the same article of a .jsonl file or of two; no article is in two
    splits. It stands in for AAN where that is not at hand: another task, not comparable with published numbers."""
    texts = [row["text"].encode() for _, row in _rows(articles) if isinstance(row.get("text"), str)]
    texts = [text for text in texts if len(text) >= 3 * passage]
    refuse(len(texts) < 30, f"{articles} holds {len(texts)} articles of {3 * passage:,} bytes or more; 30 are needed")
    order = permute(np.arange(len(texts)), len(texts), keys(seed, np.array([0])))
    held = max(10, len(texts) // 20)
    parts = {"test": order[:held], "valid": order[held : 2 * held], "train": order[2 * held :]}
    counts = counts_of(count, STAND_IN_COUNTS)
    splits = {split: _pairs(texts, parts[split], counts[split], passage, seed, split) for split in SPLITS}
    described = Described(
        task="retrieval", classes=("different", "same"), vocab_size=VOCABULARY, seed=seed,
        settings={"passage": passage}, origin="stand-in for AAN: passages of the same article or of two",
    )  # fmt: skip
    return described, splits


def _pairs(texts: list[bytes], part: np.ndarray, count: int, passage: int, seed: int, split: str) -> Examples:
    random = random_of(seed, split, 0)
    first, second, labels = [], [], []
    for _ in range(count):
        one, other = random.choice(part, 2, replace=False)
        label = int(random.integers(2))
        text = texts[one]
        begin, behind = np.sort(random.integers(0, len(text) - 2 * passage + 1, 2))
        pair = [_cut(text, int(begin), passage), _cut(text, int(behind) + passage, passage)]
        if not label:
            place = int(random.integers(0, len(texts[other]) - passage + 1))
            pair[1] = _cut(texts[other], place, passage)
        if random.integers(2):
            pair.reverse()
        first.append(pair[0])
        second.append(pair[1])
        labels.append(label)
    return examples_of(first, labels, "uint16", seconds=second)


def _cut(text: bytes, begin: int, length: int) -> np.ndarray:
    return np.frombuffer(text[begin : begin + length], dtype=np.uint8).astype(np.uint16) + 1
