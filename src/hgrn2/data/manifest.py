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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.tokenizer import Tokenizer, load_tokenizer
from hgrn2.errors import UserError
from hgrn2.files import listed_name, open_regular, read_json, restored
from hgrn2.progress import Progress, silent
from hgrn2.settings import from_dict, refuse

MANIFEST = "manifest.json"
FORMAT = "hgrn2-corpus"
VERSION = 1
COUNTED = ("bytes", "chars")
"""Tokenizers whose ids say how many bytes of text they stand for, whatever the text was."""
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
    refuse(not restored(Path(folder)).exists(), f"{folder} does not exist")
    refuse(not path.exists(), f"{folder} is not a prepared corpus (no {MANIFEST}); make one with: hgrn2 data prepare")
    values = read_json(path, dict)
    refuse(values.get("format") != FORMAT, f"{path} is not a corpus manifest")
    version = values.get("version")
    refuse(version != VERSION, f"{path} has version {version}; this program reads version {VERSION}: prepare it anew")
    raw = from_dict(Manifest, values, str(path))
    refuse(raw.dtype not in DTYPES, f"{path}: dtype {raw.dtype!r} is not one of {', '.join(DTYPES)}")
    refuse(not isinstance(raw.splits, dict) or not raw.splits, f"{path} lists no splits")
    _check_tokenizer(path, raw.tokenizer, raw.item_type)
    splits = {name: from_dict(Split, split, f"{path} {name}") for name, split in raw.splits.items()}
    for name, split in splits.items():
        _check_split(Path(folder), name, split, raw.item_type.itemsize)
    names = [name for split in splits.values() for shard in split.shards for name in (shard.file, shard.documents_file)]
    twice = next((name for name in names if names.count(name) > 1), None)
    refuse(twice is not None, f"{path} lists {twice} twice")
    return replace(raw, splits=splits)


def _check_tokenizer(path: Path, identity: Any, item: np.dtype) -> None:
    """The identity of a tokenizer: a vocabulary that the type of the ids can count, a separator inside it."""
    size = identity.get("vocab_size") if isinstance(identity, dict) else None
    if type(size) is not int or size < 1:
        raise UserError(f"{path} lacks the size of the vocabulary")
    refuse(size > 1 << 8 * item.itemsize, f"{path}: ids of a vocabulary of {size:,} do not fit into {item.name}")
    eot = identity.get("eot")
    inside = eot is None or (type(eot) is int and eot in range(size))
    refuse(not inside, f"{path}: the end of a document is {eot!r:.40}, which is no id of {size:,}")
    texts = all(isinstance(identity.get(key), str) for key in ("kind", "sha256"))
    refuse(not texts, f"{path} does not say which tokenizer it is")


def _check_split(folder: Path, name: str, split: Split, item_size: int) -> None:
    path = folder / MANIFEST
    counts = [("text_bytes", split.text_bytes), ("tokens", split.tokens), ("documents", split.documents)]
    counts += [(key, value) for shard in split.shards for key, value in
               (("tokens", shard.tokens), ("documents", shard.documents))]  # fmt: skip
    for key, value in counts:
        refuse(not 0 <= value < 1 << 62, f"{path}: {key} of {name} is {value}, which cannot be")
    more = split.documents > split.tokens
    refuse(more, f"{path}: {name} has {split.documents:,} documents of {split.tokens:,} tokens all together")
    some = split.tokens > 0
    missing = some != (split.documents > 0) or (some and split.text_bytes == 0)
    refuse(missing, f"{path}: {name} has {split.tokens:,} tokens, {split.documents:,} documents and "
                    f"{split.text_bytes:,} bytes of text, which cannot be")  # fmt: skip
    sums = sum(shard.tokens for shard in split.shards), sum(shard.documents for shard in split.shards)
    refuse(sums != (split.tokens, split.documents), f"{path}: the shards of {name} do not add up to its counts")
    for shard in split.shards:
        _check_size(folder, shard.file, shard.tokens * item_size)
        _check_size(folder, shard.documents_file, shard.documents * 8)


def _check_size(folder: Path, name: str, expected: int) -> None:
    path = folder / listed_name(name, str(folder / MANIFEST))
    refuse(not path.is_file(), f"{path} is missing; the corpus is incomplete: prepare it anew")
    size = path.stat().st_size
    word = "truncated" if size < expected else "too long"
    refuse(size != expected, f"{path} is {word}: {size:,} bytes instead of {expected:,}; prepare the corpus anew")


def verify(folder: Path, progress: Progress = silent) -> dict[str, Any]:
    """Recompute every checksum of a prepared corpus and look at every number; the first fault is a `UserError`.

    Where ids say how many bytes they stand for (tokenizers `bytes` and `chars`), `text_bytes` is counted again too.

    `progress` is told bytes. Returns {"files", "bytes", "tokens"}: what was checked.
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
        progress("verifying", done, total)

    for name, split in manifest.splits.items():
        counted = sum(_verify_shard(folder, shard, item, tokenizer, advance) for shard in split.shards)
        refuse(
            tokenizer.kind in COUNTED and counted != split.text_bytes,
            f"{folder / MANIFEST}: text_bytes of {name} is {split.text_bytes:,}; its tokens stand for {counted:,}",
        )
        for shard in split.shards[:1]:
            path = folder / shard.documents_file
            refuse(not _begins(path), f"{path}: the first document does not start at the first token")
    return {"files": 2 * len(shards), "bytes": total, "tokens": sum(shard.tokens for shard in shards)}


def _verify_shard(
    folder: Path, shard: Shard, item: np.dtype, tokenizer: Tokenizer, advance: Callable[[int], None]
) -> int:
    """Both files of a shard; returns the bytes of text that its ids stand for, where an id says that by itself."""
    counted = 0

    def count(ids: np.ndarray) -> None:
        nonlocal counted
        counted += tokenizer.bytes_per(ids)

    each = count if tokenizer.kind in COUNTED else None
    _verify_file(folder / shard.file, shard.sha256, item, tokenizer.vocab_size, advance, each=each)
    path = folder / shard.documents_file
    _verify_file(path, shard.documents_sha256, np.dtype(DOCUMENTS_DTYPE), shard.tokens, advance, rising=True)
    return counted


def _begins(path: Path) -> bool:
    with open_regular(path) as stream:
        return stream.read(8) in (b"", bytes(8))


def _verify_file(
    path: Path, expected: str, item: np.dtype, bound: int, advance: Callable[[int], None], *, rising: bool = False,
    each: Callable[[np.ndarray], None] | None = None,
) -> None:  # fmt: skip
    """The checksum, and that every number is in [0, bound), and above the one before it where that is asked for."""
    digest = hashlib.sha256()
    fault = ""
    last = -1
    with open_regular(path) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            numbers = np.frombuffer(block, dtype=item)
            if numbers.min() < 0 or numbers.max() >= bound:
                fault = fault or f"holds a number outside [0, {bound})"
            if rising and (numbers[0] <= last or (numbers[1:] <= numbers[:-1]).any()):
                fault = fault or "holds document starts that do not rise"
            if each is not None and not fault:
                each(numbers)
            last = int(numbers[-1])
            advance(len(block))
    refuse(digest.hexdigest() != expected, f"{path} is damaged: its checksum differs; prepare the corpus anew")
    refuse(bool(fault), f"{path} {fault}; prepare the corpus anew")
