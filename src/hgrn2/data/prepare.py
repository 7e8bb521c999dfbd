"""Text to a prepared corpus: read twice, tokenise in bounded batches, write shards, and appear all at once.

The first reading only looks: it finds every mistake in the inputs before hours of work, counts what decides the
held-out part, and collects the alphabet where the tokenizer needs one. The folder is built under a temporary name.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.learning import learn_bpe, learned_size
from hgrn2.data.manifest import FORMAT, MANIFEST, VERSION, Manifest, Split
from hgrn2.data.permutation import keys, permute
from hgrn2.data.recutting import Part, recut
from hgrn2.data.shards import SHARD_TOKENS, SplitWriter, item_type
from hgrn2.data.sources import Newlines, Sources, Survey
from hgrn2.data.splitting import Piece
from hgrn2.data.tokenizer import CharTokenizer, Tokenizer, load_tokenizer
from hgrn2.files import atomic_folder, restored, write_json
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

BATCH_CHARACTERS = 1 << 20  # text tokenised at once: enough to keep the library's threads busy
HOLD_OUT_SEED = 0


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
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Make the corpus folder `out` (layout: hgrn2.data.manifest) from text files, folders and JSONL.

    `tokenizer` is one, or a spec of `load_tokenizer`; "chars" is built from all the inputs, "bpe:N" learns a vocabulary
    of N ids from those trained on. `newlines` and `split` are those of `hgrn2.data.sources.Sources`.

    The split `valid` comes from the inputs `valid` if given. Otherwise `valid_fraction` of the documents, at least one,
    is held out, chosen at random once and for all; of a single document the last part by characters. 0 holds nothing
    out.
    `progress(stage, done, total)` hears of "reading" in bytes on disk and "tokenising" in characters, and of what
    `learn_bpe` tells.

    Nothing appears at `out` before all is written. `overwrite` replaces a prepared corpus there, and nothing else.
    Returns {"folder", "tokenizer", "splits": {name: {"tokens", "documents", "text_bytes", "shards"}}, "text",
    "tokens", "seconds", "tokens_per_second"}; "text" is the manifest's, the time is the whole call's.
    """
    began = time.perf_counter()
    refuse(not 0 <= valid_fraction < 1, f"valid fraction must lie in [0, 1), not {valid_fraction}")
    refuse(shard_tokens < 1, f"a shard must hold at least one token, not {shard_tokens}")
    out = Path(out).absolute()
    _check_place(out, overwrite)
    sources = {"train": Sources(inputs, json_field, newlines=newlines, split=split)}
    if valid:
        sources["valid"] = Sources(valid, json_field, newlines=newlines, split=split)
        shared = {file.resolve() for file in sources["train"].files} & {
            file.resolve() for file in sources["valid"].files
        }
        refuse(bool(shared), f"{min(shared, default='')} is both trained on and held out")
    of_text = not isinstance(tokenizer, Tokenizer) and str(tokenizer) == CharTokenizer.kind
    to_learn = None if isinstance(tokenizer, Tokenizer) else learned_size(str(tokenizer))
    if not isinstance(tokenizer, Tokenizer) and not of_text and to_learn is None:
        tokenizer = load_tokenizer(tokenizer)
    with atomic_folder(out, replace=overwrite) as folder:
        surveys = _survey(sources, alphabet=of_text, progress=progress)
        total = sum(survey.characters for survey in surveys.values())
        held_out = 0.0 if valid else valid_fraction
        routed = _route(sources, surveys, held_out)
        if of_text:
            tokenizer = CharTokenizer(set().union(*(survey.alphabet for survey in surveys.values())))
        elif to_learn is not None:
            texts = (piece.text for name, piece in _route(sources, surveys, held_out) if name == "train")
            tokenizer = learn_bpe(texts, to_learn, total, progress)
        assert isinstance(tokenizer, Tokenizer)
        splits = _write_splits(folder, routed, tokenizer, shard_tokens, total, progress)
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
    return _statistics(out, manifest, time.perf_counter() - began)


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


def _survey(sources: dict[str, Sources], *, alphabet: bool, progress: Progress) -> dict[str, Survey]:
    total = sum(source.size for source in sources.values())
    before = 0
    surveys = {}
    for name, source in sources.items():
        surveys[name] = source.survey(
            alphabet=alphabet, on_read=lambda done, before=before: progress("reading", before + done, total)
        )
        before += source.size
    return surveys


def _route(
    sources: dict[str, Sources], surveys: dict[str, Survey], valid_fraction: float
) -> Iterator[tuple[str, Piece]]:
    """Every piece with the split it goes to; where text is held out that cannot be, a `UserError` at once."""
    documents, characters = surveys["train"].documents, surveys["train"].characters
    if valid_fraction == 0:
        return ((name, piece) for name, source in sources.items() for piece in source.pieces())
    if documents == 1:
        cut = characters - round(characters * valid_fraction)
        refuse(not 0 < cut < characters, f"a valid fraction of {valid_fraction} of {characters} characters leaves none")
        return _cut_document(sources["train"].pieces(), cut)
    held = max(1, round(documents * valid_fraction))
    refuse(held >= documents, f"a valid fraction of {valid_fraction} of {documents} documents leaves none to train on")
    return _hold_out(sources["train"].pieces(), _chosen(documents, held))


def _chosen(documents: int, held: int) -> np.ndarray:
    """One bool a document, `held` of them true, at random places; made in blocks, since documents may be many."""
    key = keys(HOLD_OUT_SEED, np.zeros(1))
    chosen = np.zeros(documents, dtype=bool)
    for begin in range(0, documents, 1 << 20):
        block = np.arange(begin, min(begin + (1 << 20), documents))
        chosen[block] = permute(block, documents, key) < held
    return chosen


def _cut_document(pieces: Iterator[Piece], cut: int) -> Iterator[tuple[str, Piece]]:
    """The first `cut` characters of one document as one document, the rest as another."""
    done = 0
    for piece in pieces:
        end = done + len(piece.text)
        if end <= cut:
            yield "train", Piece(piece.text, end == cut)
        elif done >= cut:
            yield "valid", piece
        else:
            yield "train", Piece(piece.text[: cut - done], True)
            yield "valid", Piece(piece.text[cut - done :], piece.ends)
        done = end


def _hold_out(pieces: Iterator[Piece], held: np.ndarray) -> Iterator[tuple[str, Piece]]:
    document = 0
    for piece in pieces:
        refuse(document >= len(held), "the inputs changed while they were read; run it again")
        yield ("valid" if held[document] else "train"), piece
        document += piece.ends


def _write_splits(
    folder: Path,
    routed: Iterator[tuple[str, Piece]],
    tokenizer: Tokenizer,
    shard_tokens: int,
    total: int,
    progress: Progress,
) -> dict[str, Split]:
    done = 0
    with contextlib.ExitStack() as stack:
        writers: dict[str, SplitWriter] = {}
        for batch in _batches(recut(routed, tokenizer)):
            encoded = tokenizer.encode_documents([part.text for part in batch], [part.continues for part in batch])
            for part, ids in zip(batch, encoded, strict=True):
                if part.split not in writers:
                    writer = SplitWriter(folder, part.split, tokenizer, shard_tokens)
                    writers[part.split] = stack.enter_context(writer)
                writers[part.split].add(ids, Piece(part.text, part.ends))
                done += len(part.text)
            progress("tokenising", done, total)
        refuse(done != total, "the inputs changed while they were read; run it again")
        return {name: writers[name].finish() for name in sorted(writers)}


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


def _check_place(out: Path, overwrite: bool) -> None:
    if not restored(out).exists():
        return
    refuse(not overwrite, f"{out} already exists; it is replaced only with --overwrite")
    refuse(not (out / MANIFEST).is_file(), f"{out} is not a prepared corpus; it is not overwritten")
