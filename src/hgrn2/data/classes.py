"""Labelled examples as a folder: compact .npy arrays with a manifest, read memory-mapped.

data/
  manifest.json               task, seed, settings, classes, and of every array its file, dtype, shape and checksum
  train.a.npy                 images [N,H,W,C] uint8, or tokens of all examples end to end
  train.a.offsets.npy         where each example begins in them, int64 [N+1]; absent for images
  train.b.npy, .offsets.npy   second texts, where examples are pairs
  train.labels.npy            int64 [N]
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.errors import UserError
from hgrn2.files import atomic_folder, listed_name, read_json, refuse_special, restored, sha256, write_json
from hgrn2.settings import from_dict, refuse

FORMAT = "hgrn2-classes"
VERSION = 1
BLOCK = 1 << 22  # numbers looked at at a time


@dataclass(frozen=True, kw_only=True)
class Examples:
    """N labelled examples: images, sequences of tokens, or pairs of sequences.

    `a` is uint8 [N,H,W,C] when `a_offsets` is None, otherwise the tokens of all examples end to end, example i being
    `a[a_offsets[i] : a_offsets[i+1]]`, or the real numbers of all steps, float32 [steps,C]; `b` likewise where examples
    are pairs. `labels` are int64 [N].
    """

    a: np.ndarray
    labels: np.ndarray
    a_offsets: np.ndarray | None = None
    b: np.ndarray | None = None
    b_offsets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, index: int) -> np.ndarray:
        """Tokens [T] of an example, its numbers [T,C], or its image [H,W,C]."""
        if self.a_offsets is None:
            return self.a[index]
        return self.a[self.a_offsets[index] : self.a_offsets[index + 1]]

    def second(self, index: int) -> np.ndarray:
        """Tokens [T] of the second text of a pair."""
        if self.b is None or self.b_offsets is None:
            raise IndexError("these examples are not pairs")
        return self.b[self.b_offsets[index] : self.b_offsets[index + 1]]

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of each example, int64 [n]; of a pair the longer text."""
        if self.a_offsets is None:
            return np.full(len(indices), int(np.prod(self.a.shape[1:3])), dtype=np.int64)
        found = self.a_offsets[indices + 1] - self.a_offsets[indices]
        if self.b_offsets is not None:
            found = np.maximum(found, self.b_offsets[indices + 1] - self.b_offsets[indices])
        return found


@dataclass(frozen=True)
class ImageStream:
    """Labelled images that are made or read as they are needed, once: too many to hold in memory.

    `shape` is [N,H,W,C]; `blocks` gives images uint8 [n,H,W,C] and their labels [n], N of them all together.
    """

    shape: tuple[int, int, int, int]
    blocks: Iterator[tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return self.shape[0]

    def into(self, images: np.ndarray) -> np.ndarray:
        """Fill images uint8 [N,H,W,C]; returns the labels, int64 [N]."""
        labels, place = [], 0
        for block, its_labels in self.blocks:
            images[place : place + len(block)] = block
            labels.append(its_labels)
            place += len(block)
        refuse(place != len(self), f"{len(self)} images were announced and {place} came")
        return np.concatenate(labels).astype(np.int64)

    def held(self) -> Examples:
        """All of them in memory."""
        images = np.zeros(self.shape, dtype=np.uint8)
        return Examples(labels=self.into(images), a=images)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the examples are: the manifest without its files."""

    task: str
    classes: tuple[str, ...]
    vocab_size: int
    """Token ids are below it; 256 grey levels or channel values for images; 0 for real numbers."""
    origin: str
    """Where the examples come from, to be said beside every result."""
    seed: int = 0
    settings: dict = field(default_factory=dict)


def examples_of(sequences: Iterable[np.ndarray], labels: Iterable[int], dtype: str = "uint8",
                seconds: Iterable[np.ndarray] | None = None) -> Examples:  # fmt: skip
    """Ragged examples from arrays of tokens [T], or of numbers [T,C]; `seconds` makes them pairs."""
    a, a_offsets = _ragged(sequences, dtype)
    b, b_offsets = _ragged(seconds, dtype) if seconds is not None else (None, None)
    return Examples(a=a, a_offsets=a_offsets, b=b, b_offsets=b_offsets, labels=np.asarray(list(labels), dtype=np.int64))


def _ragged(sequences: Iterable[np.ndarray], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    parts = [np.asarray(sequence, dtype=dtype) for sequence in sequences]
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return (np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)), offsets


def write_examples(out: Path, described: Described, splits: Mapping[str, Examples | ImageStream]) -> dict[str, Any]:
    """Write the folder `out`, which must not exist; it appears when it is complete. Returns the manifest."""
    with atomic_folder(out) as folder:
        return fill(folder, described, splits)


def fill(folder: Path, described: Described, splits: Mapping[str, Examples | ImageStream]) -> dict[str, Any]:
    """Write the files of `write_examples` into an empty folder, one of `atomic_folder` as a rule; the manifest last."""
    for name, examples in splits.items():
        refuse(len(examples) == 0, f"the split {name} of {described.task} has no examples")
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, **described.__dict__, "splits": {}}
    for name, examples in splits.items():
        if isinstance(examples, ImageStream):
            examples = _written(folder / f"{name}.a.npy", examples)
        check_labels(examples.labels, len(described.classes), f"{described.task} {name}")
        arrays = {}
        for field_name, array in vars(examples).items():
            if array is not None:
                file = f"{name}.{field_name.replace('_', '.')}.npy"
                if not (folder / file).exists():
                    np.save(folder / file, array, allow_pickle=False)
                arrays[field_name] = {"file": file, "dtype": str(array.dtype), "shape": list(array.shape),
                                      "sha256": sha256(folder / file)}  # fmt: skip
        manifest["splits"][name] = {"count": len(examples), "arrays": arrays}
    write_json(folder / "manifest.json", manifest)
    return manifest


def _written(path: Path, stream: ImageStream) -> Examples:
    """The stream's images written to a file while they come, and mapped."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=stream.shape)
    if hasattr(os, "posix_fallocate"):  # a mapped page without a place on a full disk would kill the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    labels = stream.into(images)
    images.flush()
    return Examples(a=images, labels=labels)


def check_labels(labels: np.ndarray, classes: int, where: str) -> None:
    """Refuse labels outside [0, classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(f"{where}: label {labels[wrong[0]]} of example {wrong[0]} is outside 0 to {classes - 1}")


@dataclass(frozen=True)
class ClassData:
    """A folder that was opened: what it holds, and its splits by name."""

    folder: Path
    described: Described
    manifest: dict[str, Any]

    def split(self, name: str) -> Examples:
        """Map a split; an unknown one, a missing or truncated file, or wrong numbers are a `UserError`."""
        splits = self.manifest["splits"]
        refuse(name not in splits, f"{self.folder} has no split {name!r}; it has {', '.join(splits)}")
        arrays = {key: _map(self.folder, info) for key, info in splits[name]["arrays"].items()}
        examples = Examples(**arrays)
        _check_arrays(examples, splits[name]["count"], f"{self.folder} {name}")
        check_labels(examples.labels, len(self.described.classes), f"{self.folder} {name}")
        return examples

    def identity(self) -> dict[str, str]:
        """Checksum of every file: what a run remembers of its data."""
        return {i["file"]: i["sha256"] for s in self.manifest["splits"].values() for i in s["arrays"].values()}

    def identity_of(self, split: str) -> str:
        """Hex digest of a split's checksums: for a run to know its data again."""
        arrays = self.manifest["splits"][split]["arrays"]
        sums = sorted((key, info["sha256"]) for key, info in arrays.items())
        return hashlib.sha256(repr(sums).encode()).hexdigest()

    def verify(self) -> int:
        """Recompute every checksum and look at every number; the first fault is a `UserError`. Returns how many files
        were checked."""
        for file, stated in self.identity().items():
            refuse(sha256(self.folder / file) != stated, f"{self.folder / file} is damaged: its checksum differs")
        for name in self.manifest["splits"]:
            examples = self.split(name)
            for key, tokens in (("a", examples.a), ("b", examples.b)):
                size = self.described.vocab_size
                for begin in range(0, 0 if tokens is None else len(tokens), BLOCK):
                    assert tokens is not None
                    block = tokens[begin : begin + BLOCK]
                    if block.dtype.kind == "f":
                        refuse(not np.isfinite(block).all(), f"{self.folder} {name}.{key} holds a number not finite")
                        continue
                    wrong = block.min() < 0 or block.max() >= size
                    refuse(bool(wrong), f"{self.folder} {name}.{key} holds a number outside 0 to {size - 1}")
        return len(self.identity())


def open_examples(folder: str | Path) -> ClassData:
    """Open a folder that `write_examples` made."""
    folder = Path(folder)
    path = restored(folder) / "manifest.json"
    refuse(not path.exists(), f"{folder} holds no prepared examples (no manifest.json); make some with: hgrn2 data lra")
    values = read_json(path, dict)
    good = values.get("format") == FORMAT and isinstance(values.get("splits"), dict)
    refuse(not good, f"{path} is not a manifest of examples")
    version = values.get("version")
    refuse(version != VERSION, f"{path} has version {version}; this program reads {VERSION}: make the data anew")
    known = Described.__dataclass_fields__
    described = from_dict(Described, {k: v for k, v in values.items() if k in known}, str(path))
    refuse(not described.classes, f"{path} names no classes")
    for name, split in values["splits"].items():
        _check_split(path, name, split)
    numbers = all(split["arrays"]["a"]["dtype"] == "float32" for split in values["splits"].values())
    size, least = described.vocab_size, 0 if numbers else 1
    refuse(not least <= size < 1 << 31, f"{path}: vocab_size is {size}, which cannot be")
    return ClassData(folder, described, values)


def _check_split(path: Path, name: str, split: Any) -> None:
    """What a manifest says of a split: a count, and of every array its file, dtype, shape and checksum."""
    where = f"{path}, split {name!r:.80}"
    good = isinstance(split, dict) and type(split.get("count")) is int and isinstance(split.get("arrays"), dict)
    refuse(not good, f"{where}: it must state a count and arrays")
    refuse(split["count"] < 1, f"{where}: count is {split['count']}, which cannot be")
    known = set(Examples.__dataclass_fields__)
    for key, info in split["arrays"].items():
        refuse(key not in known, f"{where}: {key!r:.80} is no array of examples")
        kinds = {"file": str, "dtype": str, "shape": list, "sha256": str}
        good = isinstance(info, dict) and all(isinstance(info.get(word), kind) for word, kind in kinds.items())
        refuse(not good, f"{where}.{key} must state {', '.join(kinds)}")
        listed_name(info["file"], where)
    lacking = {"a", "labels"} - set(split["arrays"])
    refuse(bool(lacking), f"{where} lacks {', '.join(sorted(lacking))}")


def _check_arrays(examples: Examples, count: int, where: str) -> None:
    """Kinds, sizes and offsets that fit to each other."""
    labels, pairs = examples.labels, (examples.b is not None, examples.b_offsets is not None)
    refuse(labels.dtype != np.int64 or labels.shape != (count,), f"{where}: labels must be int64 [{count}]")
    refuse(pairs[0] != pairs[1], f"{where}: second texts need their offsets")
    if examples.a_offsets is None:
        good = examples.a.ndim == 4 and examples.a.dtype == np.uint8 and len(examples.a) == count and not any(pairs)
        refuse(not good, f"{where}: images must be uint8 [{count},H,W,C]")
        return
    for tokens, offsets in ((examples.a, examples.a_offsets), (examples.b, examples.b_offsets)):
        if tokens is None or offsets is None:
            continue
        numbers = tokens.ndim == 2 and tokens.dtype == np.float32
        wrong = not numbers and (tokens.ndim != 1 or tokens.dtype.kind not in "iu")
        refuse(wrong, f"{where}: tokens must be whole numbers in one line")
        fits = offsets.dtype == np.int64 and offsets.shape == (count + 1,)
        rises = fits and offsets[0] == 0 and offsets[-1] == len(tokens) and bool((np.diff(offsets) >= 0).all())
        refuse(not rises, f"{where}: its offsets do not divide {len(tokens):,} tokens into {count:,} examples")


def _map(folder: Path, info: dict[str, Any]) -> np.ndarray:
    name = info["file"]
    refuse_special(folder / name)
    try:
        array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{folder / name} is missing; make the data anew") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{folder / name} is damaged: {error}") from None
    same = [str(array.dtype), list(array.shape)] == [info["dtype"], info["shape"]]
    refuse(not same, f"{folder / name} is not the array its manifest names")
    return array
