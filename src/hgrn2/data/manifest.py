"""What a prepared corpus looks like on disk, and its check.

    corpus/
      manifest.json          format, tokenizer identity, dtype, and for each split its counts and shards
      tokenizer/             the tokenizer itself (hgrn2.data.tokenizer)
      train-00000.bin        token ids, little-endian, uint16 up to 65,536 ids in the vocabulary and uint32 above
      train-00000.docs       where documents start in that shard, counted in tokens from its beginning: int64, rising
      train-00001.bin ...    a split is its shards laid end to end; a document may run over a border

A document's tokens are followed by the separator `eot` where the tokenizer has one; the next document starts after it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.tokenizer import load_tokenizer
from hgrn2.files import read_json
from hgrn2.settings import from_dict, refuse

MANIFEST = "manifest.json"
FORMAT = "hgrn2-corpus"
VERSION = 1
DTYPES = ("uint16", "uint32")
DOCUMENTS_DTYPE = "<i8"
BLOCK = 1 << 23  # bytes read at a time when checksums are recomputed; a multiple of every item size


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One pair of files of a split."""

    file: str
    tokens: int
    sha256: str
    documents_file: str
    documents: int
    documents_sha256: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a corpus. `text_bytes` counts the UTF-8 bytes of its text, separators not among them."""

    tokens: int
    documents: int
    text_bytes: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json."""

    format: str
    version: int
    created_by: str
    tokenizer: dict
    dtype: str
    splits: dict
    text: dict = field(default_factory=dict)
    """How the inputs were read: newlines, split, and counts of byte order marks, files in UTF-16 and carriage returns;
    empty in corpora of earlier versions."""

    def split(self, name: str, where: Path) -> Split:
        """A split by its name; one that is not there is a `UserError` that lists those that are."""
        refuse(name not in self.splits, f"{where} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    @property
    def item_type(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json, and that every file it lists is there in full size (contents: see `verify`)."""
    path = Path(folder) / MANIFEST
    refuse(not Path(folder).exists(), f"{folder} does not exist")
    refuse(not path.is_file(), f"{folder} is not a prepared corpus (no {MANIFEST}); make one with: hgrn2 data prepare")
    values = read_json(path)
    refuse(not isinstance(values, dict) or values.get("format") != FORMAT, f"{path} is not a corpus manifest")
    version = values.get("version")
    refuse(version != VERSION, f"{path} has version {version}; this program reads version {VERSION}: prepare it anew")
    raw = from_dict(Manifest, values, str(path))
    refuse(raw.dtype not in DTYPES, f"{path}: dtype {raw.dtype!r} is not one of {', '.join(DTYPES)}")
    refuse(not isinstance(raw.splits, dict) or not raw.splits, f"{path} lists no splits")
    vocabulary = raw.tokenizer.get("vocab_size") if isinstance(raw.tokenizer, dict) else None
    refuse(type(vocabulary) is not int or vocabulary < 1, f"{path} lacks the size of the vocabulary")
    splits = {name: from_dict(Split, split, f"{path} {name}") for name, split in raw.splits.items()}
    for name, split in splits.items():
        _check_split(Path(folder), name, split, raw.item_type.itemsize)
    return Manifest(**{**values, "splits": splits})


def _check_split(folder: Path, name: str, split: Split, item_size: int) -> None:
    path = folder / MANIFEST
    sums = sum(shard.tokens for shard in split.shards), sum(shard.documents for shard in split.shards)
    refuse(sums != (split.tokens, split.documents), f"{path}: the shards of {name} do not add up to its counts")
    for shard in split.shards:
        _check_size(folder, shard.file, shard.tokens * item_size)
        _check_size(folder, shard.documents_file, shard.documents * 8)


def _check_size(folder: Path, name: str, expected: int) -> None:
    # A manifest may come from anywhere: a name with a folder in it could point outside.
    refuse(Path(name).name != name, f"{folder / MANIFEST}: {name!r} is not a plain file name")
    path = folder / name
    refuse(not path.is_file(), f"{path} is missing; the corpus is incomplete: prepare it anew")
    size = path.stat().st_size
    word = "truncated" if size < expected else "too long"
    refuse(size != expected, f"{path} is {word}: {size:,} bytes instead of {expected:,}; prepare the corpus anew")


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Recompute every checksum of a prepared corpus and look at every id; the first fault is a `UserError`.

    `progress(done, total)` is told bytes. Returns {"files", "bytes", "tokens"}: what was checked.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    different = tokenizer.identity() != manifest.tokenizer
    refuse(different, f"{folder / 'tokenizer'} is not the tokenizer that {folder / MANIFEST} names")
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    item = manifest.item_type
    total = sum(shard.tokens * item.itemsize + shard.documents * 8 for shard in shards)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    for shard in shards:
        _verify_file(folder / shard.file, shard.sha256, item, tokenizer.vocab_size, advance)
        path = folder / shard.documents_file
        _verify_file(path, shard.documents_sha256, np.dtype(DOCUMENTS_DTYPE), shard.tokens, advance, rising=True)
    return {"files": 2 * len(shards), "bytes": total, "tokens": sum(shard.tokens for shard in shards)}


def _verify_file(
    path: Path, expected: str, item: np.dtype, bound: int, advance: Callable[[int], None], *, rising: bool = False
) -> None:
    """The checksum, and that every number is in [0, bound), and above the one before it where that is asked for."""
    digest = hashlib.sha256()
    fault = ""
    last = -1
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            numbers = np.frombuffer(block, dtype=item)
            if numbers.min() < 0 or numbers.max() >= bound:
                fault = fault or f"holds a number outside [0, {bound})"
            if rising and (numbers[0] <= last or (numbers[1:] <= numbers[:-1]).any()):
                fault = fault or "holds document starts that do not rise"
            last = int(numbers[-1])
            advance(len(block))
    refuse(digest.hexdigest() != expected, f"{path} is damaged: its checksum differs; prepare the corpus anew")
    refuse(bool(fault), f"{path} {fault}; prepare the corpus anew")
