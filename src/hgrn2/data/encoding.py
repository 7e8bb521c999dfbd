"""Tokenising in blocks, in any process: what the jobs are, and what comes of one."""

import os
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from hgrn2.data.recutting import Part, recut
from hgrn2.data.shards import item_type
from hgrn2.data.sources import Sources
from hgrn2.data.splitting import Piece
from hgrn2.data.tokenizer import Tokenizer
from hgrn2.data.units import Pieces, Survey, Unit

BATCH_CHARACTERS = 1 << 20  # text tokenised at once: enough to keep a library's threads busy

Job = Unit | list[Part]
"""Whole documents, which whoever tokenises cuts into parts, or parts."""


class Encoded(NamedTuple):
    """Parts of documents, in order."""

    ids: np.ndarray
    """All of them laid end to end, with the separator after the last part of a document; in the type of the shards."""
    lengths: np.ndarray
    """Ids of each part, int64 [n]."""
    ends: np.ndarray
    """Whether the document ends with it, bool [n]."""
    text_bytes: np.ndarray
    """UTF-8 bytes of each, int64 [n]."""
    characters: int
    """Of all of them."""


def jobs_of(source: Sources, tokenizer: Tokenizer, cut: int | None) -> Iterator[Job]:
    """The text of a source in blocks. `cut`: its one document is made two, after so many characters."""
    if cut is not None:
        yield from _batches(recut(cut_document(source.pieces(), cut), tokenizer))
        return
    # Documents of text files run over several units; tables and lines of JSONL do not.
    for of_files, units in groupby(source.units(), key=lambda unit: isinstance(unit, Pieces)):
        if of_files:
            pieces = (piece for unit in units for piece in unit.pieces(Survey()))
            yield from _batches(recut(pieces, tokenizer))
        else:
            yield from units


def encode(tokenizer: Tokenizer, one_of_several: bool, job: Job) -> Encoded:
    """Tokenise a job; `one_of_several` processes leave each other the processors: libraries then start no threads."""
    if one_of_several:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parts = job if isinstance(job, list) else recut(job.pieces(Survey()), tokenizer)
    item = item_type(tokenizer)
    ids, lengths, ends, sizes, characters = [np.zeros(0, item)], [], [], [], 0
    separator = np.array([] if tokenizer.eot is None else [tokenizer.eot], item)
    for batch in _batches(iter(parts)):
        encoded = tokenizer.encode_documents([part.text for part in batch], [part.continues for part in batch])
        for part, found in zip(batch, encoded, strict=True):
            ids.append(found.astype(item))
            if part.ends:
                ids.append(separator)
            lengths.append(len(found) + part.ends * len(separator))
            ends.append(part.ends)
            sizes.append(len(part.text.encode()))
            characters += len(part.text)
    return Encoded(
        np.concatenate(ids), np.array(lengths, np.int64), np.array(ends, bool), np.array(sizes, np.int64), characters
    )


def cut_document(pieces: Iterator[Piece], cut: int) -> Iterator[Piece]:
    """The first `cut` characters of one document as one document, the rest as another."""
    done = 0
    for piece in pieces:
        end = done + len(piece.text)
        if end <= cut or done >= cut:
            yield piece if end != cut else Piece(piece.text, True)
        else:
            yield Piece(piece.text[: cut - done], True)
            yield Piece(piece.text[cut - done :], piece.ends)
        done = end


def _batches(parts: Iterator[Part]) -> Iterator[list[Part]]:
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
