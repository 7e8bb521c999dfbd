"""Preparing a corpus: what comes out, what is held out, and that nothing half-made is ever left."""

import errno
import itertools
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrn2.data import prepare as preparing
from hgrn2.data import shards
from hgrn2.data.corpus import Corpus, prepare, verify
from hgrn2.data.manifest import read_manifest
from hgrn2.data.tokenizer import ByteTokenizer, Tokenizer
from hgrn2.errors import UserError
from hgrn2.files import folders

TEXTS = [f"document {n}: " + "wörter " * (n % 7) for n in range(50)]


def texts_of(corpus: Corpus) -> list[str]:
    """The documents of a corpus, read back."""
    starts = [*corpus.starts_between(0, corpus.n_tokens).tolist(), corpus.n_tokens]
    tokenizer = corpus.tokenizer()
    return [tokenizer.decode(corpus.read(a, b - a)) for a, b in itertools.pairwise(starts)]


@pytest.mark.parametrize("shard_tokens", [1, 7, 100, 1 << 28])
def test_documents_come_back_from_shards_of_any_size(
    tmp_path: Path, write_lines: Callable[..., Path], shard_tokens: int
) -> None:
    texts = TEXTS[:4]
    path = write_lines(texts)
    result = prepare([path], tmp_path / "out", "bytes", valid_fraction=0, shard_tokens=shard_tokens)
    corpus = Corpus.open(tmp_path / "out")
    tokens = sum(len(text.encode()) + 1 for text in texts)
    assert texts_of(corpus) == texts
    assert (corpus.n_tokens, corpus.n_documents, corpus.vocab_size) == (tokens, 4, 257)
    assert corpus.text_bytes == tokens - 4
    assert corpus.read(corpus.n_tokens - 1, 1).tolist() == [256]
    train = result["splits"]["train"]
    assert train == {"tokens": tokens, "documents": 4, "text_bytes": tokens - 4, "shards": -(-tokens // shard_tokens)}
    assert list(result["splits"]) == ["train"]
    assert result["tokens_per_second"] == pytest.approx(result["tokens"] / result["seconds"])
    assert verify(tmp_path / "out")["tokens"] == tokens


def test_long_document_in_pieces_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgrn2.data.units.BLOCK", 10)
    monkeypatch.setattr("hgrn2.data.encoding.BATCH_CHARACTERS", 25)
    text = "line of text\r\n\n" * 40
    (tmp_path / "a.txt").write_bytes(text.encode())
    for newlines, wanted in (("keep", text), ("unix", text.replace("\r\n", "\n"))):
        options: dict[str, Any] = {"newlines": newlines, "overwrite": True}
        made = prepare([tmp_path / "a.txt"], tmp_path / "out", "bytes", valid_fraction=0, shard_tokens=64, **options)
        assert texts_of(Corpus.open(tmp_path / "out")) == [wanted]
        assert (made["text"]["newlines"], made["text"]["carriage_returns"]) == (newlines, 40)
        assert read_manifest(tmp_path / "out").text == made["text"]


def test_three_novels_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "three.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"BOOK I\r\n\r\nOnce.\r\n\r\n\r\n" * 3)
    made = prepare([path], tmp_path / "out", "bytes", valid_fraction=0.3, split="heading:^BOOK ")
    assert [made["splits"][name]["documents"] for name in ("train", "valid")] == [2, 1]
    assert texts_of(Corpus.open(tmp_path / "out")) == ["BOOK I\n\nOnce."] * 2
    assert made["text"] == {
        "newlines": "unix", "split": "heading:^BOOK ", "byte_order_marks": 1, "utf16_files": 0, "carriage_returns": 15,
    }  # fmt: skip


def test_a_vocabulary_learned_from_what_is_trained_on(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    pytest.importorskip("tokenizers")
    path, valid = write_lines(TEXTS, "a.jsonl"), write_lines(["zzzz zzzz zzzz"], "b.jsonl")
    heard: list[tuple[str, int, int]] = []
    for name in ("one", "two"):
        prepare([path], tmp_path / name, "bpe:270", valid=[valid], progress=lambda *report: heard.append(report))
    corpus = Corpus.open(tmp_path / "one")
    assert corpus.vocab_size == 270
    assert texts_of(corpus) == TEXTS
    assert len(corpus.tokenizer().encode("zzzz")) == 4  # held-out text teaches nothing
    for file in ("hgrn2_tokenizer.json", "tokenizer.json"):
        assert (tmp_path / "one/tokenizer" / file).read_bytes() == (tmp_path / "two/tokenizer" / file).read_bytes()
    assert {stage for stage, _, _ in heard} == {"reading", "counting words", "merging", "tokenising"}
    for wrong in ("bpe:", "bpe:many", "bpe:256", "bpe:-5"):
        with pytest.raises(UserError, match="tokenizer bpe:"):
            prepare([path], tmp_path / "no", wrong)


def test_held_out_documents(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines(TEXTS)
    prepare([path], tmp_path / "out", "bytes", valid_fraction=0.2)
    train, valid = (texts_of(Corpus.open(tmp_path / "out", split)) for split in ("train", "valid"))
    assert len(valid) == 10
    assert sorted(train + valid) == sorted(TEXTS)
    assert train == [text for text in TEXTS if text in train]  # the order is kept
    assert valid not in (TEXTS[:10], TEXTS[-10:], TEXTS[::5])
    prepare([path], tmp_path / "few", "bytes", valid_fraction=0.001)
    assert Corpus.open(tmp_path / "few", "valid").n_documents == 1


def test_held_out_end_of_a_single_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(TEXTS)
    (tmp_path / "a.txt").write_bytes(text.encode())
    for block in (1 << 20, 13):
        monkeypatch.setattr("hgrn2.data.units.BLOCK", block)
        prepare([tmp_path / "a.txt"], tmp_path / "out", "chars", valid_fraction=0.1, overwrite=True)
        train, valid = (texts_of(Corpus.open(tmp_path / "out", split)) for split in ("train", "valid"))
        assert train == [text[: len(text) - round(len(text) * 0.1)]]
        assert train[0] + valid[0] == text
    (tmp_path / "b.txt").write_text("abc")
    with pytest.raises(UserError, match="leaves none"):
        prepare([tmp_path / "b.txt"], tmp_path / "none", "bytes")
    assert not (tmp_path / "none").exists()


def test_given_held_out_inputs(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    train, valid = write_lines(TEXTS[:5], "train.jsonl"), write_lines(["unseen ☃"], "valid.jsonl")
    prepare([train], tmp_path / "out", "chars", valid=[valid], valid_fraction=0.5)
    assert texts_of(Corpus.open(tmp_path / "out", "valid")) == ["unseen ☃"]
    assert texts_of(Corpus.open(tmp_path / "out", "train")) == TEXTS[:5]
    with pytest.raises(UserError, match=r"train\.jsonl is both trained on and held out"):
        prepare([train], tmp_path / "leak", "bytes", valid=[tmp_path])


def test_same_inputs_give_the_same_bytes(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines(TEXTS)
    for name in ("a", "b"):
        prepare([path], tmp_path / name, "bytes", shard_tokens=100)
    names = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert len(names) > 10
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class WideTokenizer(ByteTokenizer):
    """Ids above what 16 bits hold."""

    vocab_size = 70_000
    eot = 69_999


def test_wide_vocabularies_take_four_bytes(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    prepare([write_lines(["ab"])], tmp_path / "out", WideTokenizer(), valid_fraction=0)
    assert read_manifest(tmp_path / "out").dtype == "uint32"
    assert (tmp_path / "out" / "train-00000.bin").read_bytes() == np.array([97, 98, 69_999], "<u4").tobytes()
    assert Corpus.open(tmp_path / "out").read(0, 3).tolist() == [97, 98, 69_999]


def test_tokenizer_of_another_corpus(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    prepare([write_lines(["abc"])], tmp_path / "a", "chars", valid_fraction=0)
    prepare([write_lines(["cab"])], tmp_path / "b", tmp_path / "a", valid_fraction=0)
    assert Corpus.open(tmp_path / "b").read(0, 3).tolist() == [2, 0, 1]
    with pytest.raises(UserError, match="character 'x'"):
        prepare([write_lines(["xyz"])], tmp_path / "c", tmp_path / "a", valid_fraction=0)


def test_bytes_of_the_vocabulary_files(tmp_path: Path, write_lines: Callable[..., Path], small_bpe: Tokenizer) -> None:
    prepare([write_lines(["hello hello"])], tmp_path / "out", small_bpe, valid_fraction=0)
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.read(0, 3).tolist() == [259, 260, 261]
    assert corpus.tokenizer().identity() == small_bpe.identity()


def test_real_articles(real: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    source = real("wiki-en-valid.jsonl.xz")
    result = prepare([source], tmp_path / "out", real("gpt2-encoder.json.xz"), valid_fraction=0)
    assert result["splits"]["train"]["documents"] == 60
    assert result["tokens"] == 251_069 + 60  # the bundle's count, and a separator for each article
    texts = [json.loads(line)["text"] for line in lzma.decompress(source.read_bytes()).splitlines()]
    assert texts_of(Corpus.open(tmp_path / "out")) == texts


def test_bad_inputs_leave_nothing(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    good = write_lines(["fine"])
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "made" / "out"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"inputs": []}, "no input"),
        ({"inputs": [tmp_path / "gone"]}, "gone does not exist"),
        ({"inputs": [good, tmp_path / "empty.txt"]}, "empty.txt is empty"),
        ({"inputs": [good, tmp_path / "latin.txt"]}, "latin.txt is not UTF-8 at byte 3"),
        ({"json_field": "body"}, "no field 'body'"),
        ({"tokenizer": "words"}, "tokenizer words"),
        ({"valid_fraction": 1.0}, "must lie in"),
        ({"inputs": [good, write_lines(["b"], "b.jsonl")], "valid_fraction": 0.9}, "leaves none to train on"),
        ({"shard_tokens": 0}, "at least one token"),
    ]
    (tmp_path / "b.jsonl").unlink()
    for change, message in cases:
        if change.get("valid_fraction") == 0.9:
            write_lines(["b"], "b.jsonl")
        with pytest.raises(UserError, match=message):
            prepare(**{"inputs": [good], "out": out, "tokenizer": "bytes", "valid_fraction": 0, **change})
        (tmp_path / "b.jsonl").unlink(missing_ok=True)
        assert sorted(tmp_path.iterdir()) == before


def test_existing_output_is_replaced_only_when_asked(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    prepare([write_lines(["old"])], out, "bytes", valid_fraction=0)
    path = write_lines(["new"])
    with pytest.raises(UserError, match=r"already exists.*--overwrite"):
        prepare([path], out, "bytes", valid_fraction=0)
    assert texts_of(Corpus.open(out)) == ["old"]
    prepare([path], out, "bytes", valid_fraction=0, overwrite=True)
    assert texts_of(Corpus.open(out)) == ["new"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["documents.jsonl", "out"]


def test_only_a_corpus_is_overwritten(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines(["text"])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for out in (tmp_path / "home", path):
        with pytest.raises(UserError, match="not a prepared corpus; it is not overwritten"):
            prepare([path], out, "bytes", overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


class FullDisk:
    """A file that takes some bytes and then fails as a full disk does, at closing too."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: bytes) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.write(b"x" * 1000)


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_nothing_and_keeps_what_was(
    tmp_path: Path, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    out = tmp_path / "out"
    if existing:
        prepare([write_lines(["old"])], out, "bytes", valid_fraction=0)
    path = write_lines(TEXTS)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(shards, "open", lambda *_: FullDisk(200), raising=False)
    with pytest.raises(UserError, match="out cannot be written: No space left on device"):
        prepare([path], out, "bytes", overwrite=True)
    assert sorted(tmp_path.iterdir()) == before
    if existing:
        assert texts_of(Corpus.open(out)) == ["old"]


def test_interruption_leaves_nothing(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines(TEXTS)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "tokenising":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([path], tmp_path / "out", "bytes", progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]


def test_failed_swap_brings_the_old_corpus_back(
    tmp_path: Path, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    path = write_lines(["old"])
    prepare([path], out, "bytes", valid_fraction=0)
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if target == out and str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "disk trouble")
        rename(source, target)

    monkeypatch.setattr(folders, "_in_one_step", lambda *_: False)
    monkeypatch.setattr(folders.os, "rename", failing)
    with pytest.raises(UserError, match="disk trouble"):
        prepare([path], out, "bytes", valid_fraction=0, overwrite=True)
    assert texts_of(Corpus.open(out)) == ["old"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["documents.jsonl", "out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines(["text"])
    (tmp_path / "fixed").mkdir(mode=0o555)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        prepare([path], tmp_path / "fixed" / "out", "bytes", valid_fraction=0)
    assert not list((tmp_path / "fixed").iterdir())


@pytest.mark.parametrize("texts", [[*TEXTS, "more"], TEXTS[:-1]])
def test_inputs_that_change_while_they_are_read(
    tmp_path: Path, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    path = write_lines(TEXTS)
    write = preparing._write_splits

    def change(*arguments: Any) -> Any:
        write_lines(texts)
        return write(*arguments)

    monkeypatch.setattr(preparing, "_write_splits", change)
    with pytest.raises(UserError, match="changed while they were read"):
        prepare([path], tmp_path / "out", "bytes")
    assert not (tmp_path / "out").exists()


def test_progress_is_told_to_the_end(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    heard: list[tuple[str, int, int]] = []
    path, valid = write_lines(TEXTS), write_lines(["unseen"], "valid.jsonl")
    prepare([path], tmp_path / "out", "bytes", valid=[valid], progress=lambda *report: heard.append(report))
    size, characters = path.stat().st_size + valid.stat().st_size, sum(map(len, TEXTS)) + 6
    for stage, total in (("reading", size), ("tokenising", characters)):
        done = [report[1] for report in heard if report[0] == stage]
        assert done == sorted(done)
        assert done[-1] == total
        assert {report[2] for report in heard if report[0] == stage} == {total}


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    line = "the quick brown fox jumps over the lazy dog " * 20 + "\n"
    path = tmp_path / "a.txt"
    path.write_text(line * 40_000)
    assert path.stat().st_size > 32 << 20
    tracemalloc.start()
    try:
        prepare([path], tmp_path / "out", "bytes", processes=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20
