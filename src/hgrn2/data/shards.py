"""Writing the shards of a split: numbers appended to files that know their own checksum."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from hgrn2.data.manifest import DOCUMENTS_DTYPE, Shard, Split
from hgrn2.data.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 28  # 512 MiB per file with 16-bit ids


def item_type(tokenizer: Tokenizer) -> np.dtype:
    """The type that ids are stored in: the smallest that holds the vocabulary."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


class SplitWriter:
    """Writes the shards of one split; closing it (`with`) without `finish` leaves no open file behind."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._item = item_type(tokenizer)
        self._shards: list[Shard] = []
        self._tokens: _HashedFile | None = None
        self._starts: _HashedFile | None = None
        self._at_start = True
        self._text_bytes = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._tokens, self._starts):
            if file:
                file.abandon()

    def add(self, ids: np.ndarray, lengths: np.ndarray, ends: np.ndarray, text_bytes: int) -> None:
        """Append parts of documents: their ids laid end to end, how many each has, and whether its document ends with
        it; the separator is among the ids. `text_bytes` counts the text behind all of them."""
        self._text_bytes += text_bytes
        begins = np.concatenate([[self._at_start], ends[:-1]])
        firsts = np.cumsum(lengths) - lengths
        starts = firsts[begins.astype(bool)]
        self._at_start = bool(ends[-1]) or starts[-1:].tolist() == [len(ids)]
        # A document without any id has no start: the next one begins where it would.
        starts = starts[np.append(starts[1:], len(ids))[: len(starts)] > starts]
        self._write(ids.astype(self._item, copy=False), starts)

    def _write(self, ids: np.ndarray, starts: np.ndarray) -> None:
        while len(ids):
            tokens, documents = self._files()
            room = self._limit - tokens.count
            here = int(np.searchsorted(starts, room))
            documents.write((starts[:here] + tokens.count).astype(DOCUMENTS_DTYPE))
            tokens.write(ids[:room])
            ids, starts = ids[room:], starts[here:] - room
            if tokens.count == self._limit:
                self._close_shard()

    def finish(self) -> Split:
        """Close the last shard; what the manifest says of the split."""
        self._close_shard()
        return Split(
            tokens=sum(shard.tokens for shard in self._shards),
            documents=sum(shard.documents for shard in self._shards),
            text_bytes=self._text_bytes,
            shards=tuple(self._shards),
        )

    def _files(self) -> "tuple[_HashedFile, _HashedFile]":
        if self._tokens is None or self._starts is None:
            stem = f"{self._split}-{len(self._shards):05d}"
            self._tokens = _HashedFile(self._folder / f"{stem}.bin")
            self._starts = _HashedFile(self._folder / f"{stem}.docs")
        return self._tokens, self._starts

    def _close_shard(self) -> None:
        if self._tokens is None or self._starts is None:
            return
        self._shards.append(
            Shard(
                file=self._tokens.path.name,
                tokens=self._tokens.count,
                sha256=self._tokens.close(),
                documents_file=self._starts.path.name,
                documents=self._starts.count,
                documents_sha256=self._starts.close(),
            )
        )
        self._tokens = self._starts = None


class _HashedFile:
    """A file of numbers that knows how many it holds and, when closed, its checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._digest = hashlib.sha256()
        self._stream = open(path, "wb")  # noqa: SIM115 (open until `close` or `abandon`)

    def write(self, numbers: np.ndarray) -> None:
        data = numbers.tobytes()
        self._stream.write(data)
        self._digest.update(data)
        self.count += len(numbers)

    def close(self) -> str:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        # Closing flushes, and on a full disk fails again: the first error is the one to be heard.
        with contextlib.suppress(OSError):
            self._stream.close()
