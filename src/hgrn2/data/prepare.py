"""Text to a prepared corpus: read twice, tokenise in bounded blocks, write shards, and appear all at once.

The first reading only looks: it finds every mistake in the inputs before hours of work, counts what decides the
held-out part, and collects the alphabet where the tokenizer needs one. The folder is built under a temporary name.
Both readings are shared out to processes (`hgrn2.data.encoding`); their number changes nothing in what is written.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.encoding import Encoded, cut_document, encode, jobs_of
from hgrn2.data.learning import learn_bpe, learned_size
from hgrn2.data.manifest import FORMAT, MANIFEST, VERSION, Manifest, Split
from hgrn2.data.permutation import keys, permute
from hgrn2.data.shards import SHARD_TOKENS, SplitWriter, item_type
from hgrn2.data.sources import Newlines, Sources, Survey
from hgrn2.data.tokenizer import CharTokenizer, Tokenizer, load_tokenizer
from hgrn2.files import atomic_folder, restored, write_json
from hgrn2.pipeline import Workers
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

HOLD_OUT_SEED = 0
SMALL = 1 << 24  # bytes on disk that one process is done with about as soon as several have started


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    tokenizer: Tokenizer | str | Path,
    *,
    valid_fraction: float = 0.01,
    valid: Sequence[str | Path] = (),
    json_field: str = "text",
    newlines: Newlines = "unix",
    split: str = "none",
    shard_tokens: int = SHARD_TOKENS,
    processes: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Make the corpus folder `out` (layout: hgrn2.data.manifest) of inputs as `hgrn2.data.sources.Sources` reads them.

    `tokenizer` is one, or a spec of `load_tokenizer`; "chars" is built from all the inputs, "bpe:N" learns a vocabulary
    of N ids from those trained on. `json_field`, `newlines` and `split` are those of `Sources`.

    The split `valid` comes from the inputs `valid` if given. Otherwise `valid_fraction` of the documents, at least one,
    is held out, chosen at random once and for all; of a single document the last part by characters. 0 holds nothing
    out.
    `processes` tokenise side by side, beside this one, which reads and writes; 1: this one alone, 0: one for each
    processor that may be used, or this one alone where the inputs are small. A tokenizer made in Python must then be
    picklable. What is written does not depend on it.
    `progress(stage, done, total)` hears of "reading" in bytes on disk and "tokenising" in characters, and of what
    `learn_bpe` tells.

    Nothing appears at `out` before all is written. `overwrite` replaces a prepared corpus there, and nothing else.
    Returns {"folder", "tokenizer", "splits": {name: {"tokens", "documents", "text_bytes", "shards"}}, "text",
    "tokens", "processes", "seconds", "tokens_per_second"}; "text" is the manifest's, the time is the whole call's.
    """
    began = time.perf_counter()
    refuse(not 0 <= valid_fraction < 1, f"valid fraction must lie in [0, 1), not {valid_fraction}")
    refuse(shard_tokens < 1, f"a shard must hold at least one token, not {shard_tokens}")
    refuse(not 0 <= processes <= 1024, f"processes must lie in [0, 1024], not {processes}")
    out = Path(out).absolute()
    _check_place(out, overwrite)
    sources = {"train": Sources(inputs, json_field, newlines=newlines, split=split)}
    if valid:
        sources["valid"] = Sources(valid, json_field, newlines=newlines, split=split)
        shared = sources["train"].names & sources["valid"].names
        refuse(bool(shared), f"{min(shared, default='')} is both trained on and held out")
    of_text = not isinstance(tokenizer, Tokenizer) and str(tokenizer) == CharTokenizer.kind
    to_learn = None if isinstance(tokenizer, Tokenizer) else learned_size(str(tokenizer))
    if not isinstance(tokenizer, Tokenizer) and not of_text and to_learn is None:
        tokenizer = load_tokenizer(tokenizer)
    processes = processes or _fitting(sources)
    with atomic_folder(out, replace=overwrite) as folder, Workers(processes) as workers:
        surveys = _survey(sources, workers, alphabet=of_text, progress=progress)
        text = _Text(sources, surveys, 0.0 if valid else valid_fraction)
        if of_text:
            tokenizer = CharTokenizer(set().union(*(survey.alphabet for survey in surveys.values())))
        elif to_learn is not None:
            tokenizer = learn_bpe(text.trained_on(), to_learn, text.characters, progress)
        assert isinstance(tokenizer, Tokenizer)
        splits = _write_splits(folder, text, tokenizer, shard_tokens, workers, progress)
        tokenizer.save(folder / "tokenizer")
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            created_by=f"hgrn2 {_version()}",
            tokenizer=tokenizer.identity(),
            dtype=item_type(tokenizer).name,
            splits=splits,
            text=_read_how(surveys, newlines, split),
        )
        write_json(folder / MANIFEST, asdict(manifest))
    return _statistics(out, manifest, time.perf_counter() - began) | {"processes": processes}


def _fitting(sources: dict[str, Sources]) -> int:
    """How many processes are worth starting for these inputs."""
    files = [file for source in sources.values() for file in source.files]
    if files and sum(file.stat().st_size for file in files) < SMALL:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version() -> str:
    """From the installed package: importing `hgrn2` itself from here would make data depend on all other packages."""
    try:
        return version("hgrn2")
    except PackageNotFoundError:
        return "(not installed)"


def _statistics(out: Path, manifest: Manifest, seconds: float) -> dict[str, Any]:
    splits = {name: {**asdict(split), "shards": len(split.shards)} for name, split in manifest.splits.items()}
    tokens = sum(split.tokens for split in manifest.splits.values())
    return {
        "folder": str(out),
        "tokenizer": manifest.tokenizer,
        "splits": splits,
        "text": manifest.text,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def _read_how(surveys: dict[str, Survey], newlines: str, split: str) -> dict[str, Any]:
    """What the manifest says of the reading."""
    counted = ("byte_order_marks", "utf16_files", "carriage_returns")
    counts = {name: sum(getattr(survey, name) for survey in surveys.values()) for name in counted}
    return {"newlines": newlines, "split": split, **counts}


def _survey(sources: dict[str, Sources], workers: Workers, *, alphabet: bool, progress: Progress) -> dict[str, Survey]:
    total = sum(source.size for source in sources.values())
    before = 0
    surveys = {}
    for name, source in sources.items():
        surveys[name] = source.survey(
            alphabet=alphabet,
            on_read=lambda done, before=before: progress("reading", before + done, total),
            workers=workers,
        )
        before += source.size
    return surveys


class _Text:
    """The inputs and which of their documents go where; where text is held out that cannot be, a `UserError`."""

    def __init__(self, sources: dict[str, Sources], surveys: dict[str, Survey], valid_fraction: float) -> None:
        self.sources = sources
        self.characters = sum(survey.characters for survey in surveys.values())
        documents, characters = surveys["train"].documents, surveys["train"].characters
        self.documents = {name: survey.documents for name, survey in surveys.items()}
        self.cut: int | None = None
        self._held = np.zeros(documents, dtype=bool)
        if valid_fraction == 0:
            return
        held = max(1, round(documents * valid_fraction))
        if documents == 1:
            cut = characters - round(characters * valid_fraction)
            none = f"a valid fraction of {valid_fraction} of {characters} characters leaves none"
            refuse(not 0 < cut < characters, none)
            self.cut, self._held, self.documents["train"] = cut, np.array([False, True]), 2
        else:
            none = f"a valid fraction of {valid_fraction} of {documents} documents leaves none to train on"
            refuse(held >= documents, none)
            self._held = _chosen(documents, held)

    def held(self, name: str, first: int, last: int) -> np.ndarray:
        """Of documents [first, last) of a source, which are held out."""
        if name == "valid":
            return np.ones(last - first, dtype=bool)
        return self._held[first:last]

    def trained_on(self) -> Iterator[str]:
        """The text that is not held out, piece by piece."""
        document = 0
        pieces = self.sources["train"].pieces()
        for piece in pieces if self.cut is None else cut_document(pieces, self.cut):
            refuse(document >= self.documents["train"], CHANGED)
            if not self._held[document]:
                yield piece.text
            document += piece.ends


def _chosen(documents: int, held: int) -> np.ndarray:
    """One bool a document, `held` of them true, at random places; made in blocks, since documents may be many."""
    key = keys(HOLD_OUT_SEED, np.zeros(1))
    chosen = np.zeros(documents, dtype=bool)
    for begin in range(0, documents, 1 << 20):
        block = np.arange(begin, min(begin + (1 << 20), documents))
        chosen[block] = permute(block, documents, key) < held
    return chosen


CHANGED = "the inputs changed while they were read; run it again"


def _write_splits(
    folder: Path, text: _Text, tokenizer: Tokenizer, shard_tokens: int, workers: Workers, progress: Progress
) -> dict[str, Split]:
    done = 0
    with contextlib.ExitStack() as stack:
        writers: dict[str, SplitWriter] = {}
        for name, source in text.sources.items():
            document = 0
            jobs = jobs_of(source, tokenizer, text.cut if name == "train" else None)
            for encoded in workers.stream(partial(encode, tokenizer, workers.count > 1), jobs):
                for split, part in _routed(encoded, text, name, document):
                    if split not in writers:
                        writer = SplitWriter(folder, split, tokenizer, shard_tokens)
                        writers[split] = stack.enter_context(writer)
                    writers[split].add(part.ids, part.lengths, part.ends, int(part.text_bytes.sum()))
                document += int(encoded.ends.sum())
                done += encoded.characters
                progress("tokenising", done, text.characters)
            refuse(document != text.documents[name], CHANGED)
        refuse(done != text.characters, CHANGED)
        return {name: writers[name].finish() for name in sorted(writers)}


def _routed(encoded: Encoded, text: _Text, name: str, document: int) -> Iterator[tuple[str, Encoded]]:
    """Runs of parts with the split that they go to; the first of them belongs to `document`."""
    if not len(encoded.ends):
        return
    numbers = np.cumsum(encoded.ends) - encoded.ends
    held = text.held(name, document, document + int(numbers[-1]) + 1)
    refuse(len(held) <= numbers[-1], CHANGED)
    flags = held[numbers]
    borders = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    offsets = np.concatenate([[0], np.cumsum(encoded.lengths)])
    for first, last in itertools.pairwise(borders):
        run = slice(first, last)
        yield ("valid" if flags[first] else "train"), Encoded(
            encoded.ids[offsets[first] : offsets[last]],
            encoded.lengths[run], encoded.ends[run], encoded.text_bytes[run], 0,
        )  # fmt: skip


def _check_place(out: Path, overwrite: bool) -> None:
    if not restored(out).exists():
        return
    refuse(not overwrite, f"{out} already exists; it is replaced only with --overwrite")
    refuse(not (out / MANIFEST).is_file(), f"{out} is not a prepared corpus; it is not overwritten")
