"""Tokens to read from: memory-mapped shards of a prepared corpus, or a text in memory, behind one interface."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hgrn2.data.manifest import DOCUMENTS_DTYPE, Manifest, Split, read_manifest, verify
from hgrn2.data.prepare import prepare
from hgrn2.data.tokenizer import Tokenizer, load_tokenizer
from hgrn2.data.tokenizer_base import digest
from hgrn2.settings import refuse

__all__ = ["Corpus", "prepare", "verify"]


class Part(NamedTuple):
    """One shard: its tokens [n] and, counted from its beginning, where documents start in it [d]."""

    tokens: np.ndarray
    documents: np.ndarray


class Corpus:
    """A row of `n_tokens` token ids in which `n_documents` documents lie one after the other.

    `vocab_size` bounds the ids. `text_bytes` is the UTF-8 size of the text behind all the tokens: mean loss in nats per
    token * n_tokens / text_bytes / ln 2 is bits per byte. `name` is for messages. Reading never loads more than is
    asked for; several readers may share one corpus.
    """

    def __init__(
        self, parts: list[Part], *, name: str, tokenizer: Tokenizer | Path, vocab_size: int, text_bytes: int, mark: Any
    ) -> None:
        """Use `open`, `from_text` or `from_documents`. `mark` is what tells this corpus from others, as JSON."""
        self.name = name
        self.vocab_size = vocab_size
        self.text_bytes = text_bytes
        self._parts = parts
        self._tokenizer = tokenizer
        self._mark = mark
        self._begins = np.cumsum([0, *(len(part.tokens) for part in parts)]).tolist()
        self.n_tokens: int = self._begins.pop()
        self.n_documents = sum(len(part.documents) for part in parts)

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> "Corpus":
        """Map a split of a prepared corpus. What is missing, truncated or of another version is a `UserError`."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        info = manifest.split(split, folder)
        parts = [
            Part(_map(folder / shard.file, manifest.item_type), _map(folder / shard.documents_file, DOCUMENTS_DTYPE))
            for shard in info.shards
        ]
        return cls(
            parts,
            name=f"{folder} ({split})",
            tokenizer=folder / "tokenizer",
            vocab_size=manifest.tokenizer["vocab_size"],
            text_bytes=info.text_bytes,
            mark=_mark(manifest, info),
        )

    @classmethod
    def from_text(cls, text: str, tokenizer: Tokenizer, *, name: str = "text in memory") -> "Corpus":
        """One document in memory, with the separator at its end where the tokenizer has one."""
        return cls.from_documents([text], tokenizer, name=name)

    @classmethod
    def from_documents(cls, texts: Iterable[str], tokenizer: Tokenizer, *, name: str = "text in memory") -> "Corpus":
        """Documents in memory; those without text are skipped. No text at all is a `UserError`."""
        texts = [text for text in texts if text]
        refuse(not texts, f"{name} is empty")
        encoded = tokenizer.encode_documents(texts)
        if tokenizer.eot is not None:
            separator = np.array([tokenizer.eot], dtype=np.int32)
            encoded = [np.concatenate([ids, separator]) for ids in encoded]
        starts = np.cumsum([0, *(len(ids) for ids in encoded)])[:-1]
        tokens = np.concatenate(encoded)
        return cls(
            [Part(tokens, starts.astype(np.int64))],
            name=name,
            tokenizer=tokenizer,
            vocab_size=tokenizer.vocab_size,
            text_bytes=sum(len(text.encode()) for text in texts),
            mark={"tokenizer": tokenizer.identity(), "shards": [_sums(tokens, starts)]},
        )

    @classmethod
    def joined(cls, corpora: Sequence["Corpus"]) -> "Corpus":
        """Corpora of one tokenizer, one after the other."""
        first = corpora[0]
        return cls(
            [part for corpus in corpora for part in corpus._parts],
            name=", ".join(corpus.name for corpus in corpora),
            tokenizer=first._tokenizer,
            vocab_size=first.vocab_size,
            text_bytes=sum(corpus.text_bytes for corpus in corpora),
            mark={"tokenizer": first._mark["tokenizer"], "joined": [corpus._mark for corpus in corpora]},
        )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens; loaded from the corpus folder at the first call."""
        if isinstance(self._tokenizer, Path):
            loaded = load_tokenizer(self._tokenizer)
            stated = self._mark["tokenizer"]
            refuse(loaded.identity() != stated, f"{self._tokenizer} is not the tokenizer that made {self.name}")
            self._tokenizer = loaded
        return self._tokenizer

    def identity(self) -> str:
        """Hex digest that differs where tokens, documents or tokenizer differ: for a run to know its data again."""
        return digest(self._mark)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64, over shard borders; outside the corpus is an IndexError."""
        if length < 0 or not 0 <= start <= self.n_tokens - length:
            raise IndexError(f"tokens [{start}, {start + length}) of a corpus of {self.n_tokens}")
        tokens = np.empty(length, dtype=np.int64)
        done = 0
        index = bisect_right(self._begins, start) - 1
        while done < length:
            offset = start + done - self._begins[index]
            taken = self._parts[index].tokens[offset : offset + length - done]
            tokens[done : done + len(taken)] = taken
            done += len(taken)
            index += 1
        # An id outside the vocabulary would be an unexplained crash inside the embedding of a GPU.
        if length and tokens.max() >= self.vocab_size:
            place = start + int(tokens.argmax())
            refuse(
                True,
                f"{self.name} holds token id {tokens.max()} at {place}, outside its vocabulary of "
                f"{self.vocab_size:,}; look at it with: hgrn2 data verify",
            )
        return tokens

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        """Where documents start within [start, stop): rising int64 positions, found by bisection."""
        found = []
        for begin, part in zip(self._begins, self._parts, strict=True):
            if begin < stop and start < begin + len(part.tokens):
                low, high = np.searchsorted(part.documents, [start - begin, stop - begin])
                found.append(np.asarray(part.documents[low:high], dtype=np.int64) + begin)
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _map(path: Path, item: np.dtype | str) -> np.ndarray:
    """The file's numbers without reading them; an empty file cannot be mapped and needs not be."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=item)
    return np.memmap(path, dtype=item, mode="r")


def _sums(*arrays: np.ndarray) -> list[str]:
    return [hashlib.sha256(array.astype(DOCUMENTS_DTYPE).tobytes()).hexdigest() for array in arrays]


def _mark(manifest: Manifest, split: Split) -> dict[str, Any]:
    sums = [[shard.sha256, shard.documents_sha256] for shard in split.shards]
    return {"tokenizer": manifest.tokenizer, "shards": sums}
