"""Reading a corpus: over shard borders, by documents, and every way a folder can be broken."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrn2.data.corpus import Corpus, prepare, verify
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.errors import UserError

TEXTS = ["first", "second one", "x", "the fourth document", "last"]


@pytest.fixture
def folder(tmp_path: Path, write_lines: Callable[..., Path]) -> Path:
    """A corpus of five documents in shards of seven tokens."""
    prepare([write_lines(TEXTS)], tmp_path / "corpus", "bytes", valid_fraction=0, shard_tokens=7)
    return tmp_path / "corpus"


def test_any_range_reads_as_from_memory(folder: Path) -> None:
    corpus = Corpus.open(folder)
    memory = Corpus.from_documents(TEXTS, ByteTokenizer())
    whole = memory.read(0, memory.n_tokens)
    assert whole.tolist() == [byte for text in TEXTS for byte in [*text.encode(), 256]]
    assert (corpus.n_tokens, corpus.n_documents, corpus.text_bytes) == (len(whole), 5, memory.text_bytes)
    starts = memory.starts_between(0, len(whole))
    assert starts.tolist() == [0, 6, 17, 19, 39]
    for begin in range(len(whole) + 1):
        for end in range(begin, len(whole) + 1):
            tokens = corpus.read(begin, end - begin)
            assert tokens.dtype == np.int64
            assert tokens.tolist() == whole[begin:end].tolist()
            found = corpus.starts_between(begin, end)
            assert found.dtype == np.int64
            assert found.tolist() == [start for start in starts.tolist() if begin <= start < end]


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 10_000), (44, 1), (3, -1)])
def test_reading_outside_is_an_index_error(folder: Path, start: int, length: int) -> None:
    with pytest.raises(IndexError):
        Corpus.open(folder).read(start, length)


def test_identity_tells_corpora_apart(folder: Path, tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    prepare([write_lines([*TEXTS[:-1], "lost"])], tmp_path / "other", "bytes", valid_fraction=0, shard_tokens=7)
    assert Corpus.open(folder).identity() == Corpus.open(folder).identity()
    assert Corpus.open(folder).identity() != Corpus.open(tmp_path / "other").identity()
    memory = [
        Corpus.from_documents(TEXTS, ByteTokenizer()),
        Corpus.from_text("".join(TEXTS), ByteTokenizer()),
        Corpus.from_documents(TEXTS, CharTokenizer("".join(TEXTS))),
        Corpus.from_text("".join(TEXTS), CharTokenizer("".join(TEXTS))),
    ]
    assert len({corpus.identity() for corpus in memory}) == 4


def test_text_in_memory() -> None:
    corpus = Corpus.from_text("abcé", CharTokenizer("abcé"), name="four")
    assert (corpus.name, corpus.n_tokens, corpus.n_documents, corpus.text_bytes) == ("four", 4, 1, 5)
    assert corpus.tokenizer().decode(corpus.read(1, 2)) == "bc"
    with pytest.raises(UserError, match="text in memory is empty"):
        Corpus.from_text("", ByteTokenizer())


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_no_corpus(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        Corpus.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest\.json.*hgrn2 data prepare"):
        Corpus.open(tmp_path)
    with pytest.raises(UserError, match="has no split 'valid'; it has train"):
        Corpus.open(folder, "valid")
    wrong = {"{": "not valid JSON", "[]": "must hold an object, not a list", "{}": "not a corpus manifest"}
    for text, message in wrong.items():
        (folder / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Corpus.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2; this program reads version 1"),
        ({"dtype": "object"}, "dtype 'object'"),
        ({"splits": {}}, "lists no splits"),
        ({"splits": {"train": {"tokens": 3}}}, "lacks documents, text_bytes, shards"),
        ({"tokenizer": {}}, "lacks the size of the vocabulary"),
        ({"extra": 1}, "unknown fields: extra"),
    ],
)
def test_manifests_of_another_shape(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_manifest(folder, **changes)
    with pytest.raises(UserError, match=message):
        Corpus.open(folder)


def test_names_that_lead_outside_are_refused(folder: Path, tmp_path: Path) -> None:
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    (folder / "train-00000.bin").rename(tmp_path / "outside.bin")
    splits["train"]["shards"][0]["file"] = "../outside.bin"
    change_manifest(folder, splits=splits)
    with pytest.raises(UserError, match=r"'\.\./outside\.bin' is not a plain file name"):
        Corpus.open(folder)


def test_counts_that_do_not_add_up(folder: Path) -> None:
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    splits["train"]["tokens"] += 1
    change_manifest(folder, splits=splits)
    with pytest.raises(UserError, match="shards of train do not add up"):
        Corpus.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_bytes": -5}, "text_bytes of train is -5, which cannot be"),
        ({"text_bytes": 0}, "0 bytes of text, which cannot be"),
        ({"text_bytes": 10**30}, "text_bytes is 1000000000000000000000000000000; it must be below"),
        ({"tokens": -1}, "tokens of train is -1, which cannot be"),
        ({"documents": 10**6}, "1,000,000 documents of 44 tokens"),
        ({"tokens": 3.5}, "tokens must be a whole number"),
        ({"shards": None}, "shards must be a list"),
        ({"shards": [None]}, "must be an object"),
    ],
)
def test_numbers_that_cannot_be(folder: Path, changes: dict[str, Any], message: str) -> None:
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    splits["train"].update(changes)
    change_manifest(folder, splits=splits)
    with pytest.raises(UserError, match=message):
        Corpus.open(folder)


def test_text_bytes_are_counted_again(folder: Path) -> None:
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    splits["train"]["text_bytes"] += 1
    change_manifest(folder, splits=splits)
    with pytest.raises(UserError, match=r"text_bytes of train is \d+; its tokens stand for \d+"):
        verify(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "lacks the size of the vocabulary"),
        ({"vocab_size": 70_000}, "ids of a vocabulary of 70,000 do not fit into uint16"),
        ({"eot": 257}, "the end of a document is 257, which is no id of 257"),
        ({"eot": "x"}, "the end of a document is 'x'"),
        ({"sha256": None}, "does not say which tokenizer it is"),
    ],
)
def test_tokenizers_that_cannot_be(folder: Path, changes: dict[str, Any], message: str) -> None:
    tokenizer = json.loads((folder / "manifest.json").read_text())["tokenizer"]
    change_manifest(folder, tokenizer={**tokenizer, **changes})
    with pytest.raises(UserError, match=message):
        Corpus.open(folder)


def test_one_file_for_two_splits_is_refused(folder: Path) -> None:
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    change_manifest(folder, splits={**splits, "valid": splits["train"]})
    with pytest.raises(UserError, match=r"lists train-00000\.bin twice"):
        Corpus.open(folder)


@pytest.mark.parametrize("name", ["train-00002.bin", "train-00002.docs"])
def test_shards_of_the_wrong_size_are_named(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{name} is truncated: {len(data) - 1} bytes instead of {len(data)}"):
        Corpus.open(folder)
    path.write_bytes(data + b"\0")
    with pytest.raises(UserError, match=rf"{name} is too long"):
        Corpus.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        verify(folder)


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00002.docs"])
def test_changed_bytes_are_found(folder: Path, name: str) -> None:
    assert verify(folder)["files"] == 14
    data = bytearray((folder / name).read_bytes())
    data[0] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is damaged: its checksum differs"):
        verify(folder)


def forge(folder: Path, kind: str, numbers: np.ndarray) -> None:
    """Replace the first shard's numbers and put the right checksum into the manifest."""
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    shard = splits["train"]["shards"][0]
    (folder / shard["file" if kind == "sha256" else "documents_file"]).write_bytes(numbers.tobytes())
    shard[kind] = hashlib.sha256(numbers.tobytes()).hexdigest()
    change_manifest(folder, splits=splits)


def test_ids_outside_the_vocabulary_are_found(folder: Path) -> None:
    forge(folder, "sha256", np.array([0, 1, 2, 999, 4, 5, 6], dtype="<u2"))
    with pytest.raises(UserError, match=r"train-00000\.bin holds a number outside \[0, 257\)"):
        verify(folder)
    corpus = Corpus.open(folder)
    assert corpus.read(0, 3).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="token id 999 at 3, outside its vocabulary of 257"):
        corpus.read(1, 5)


@pytest.mark.parametrize("starts", [[6, 0], [0, 0], [-1, 6], [0, 7]])
def test_document_starts_out_of_order_are_found(folder: Path, starts: list[int]) -> None:
    forge(folder, "documents_sha256", np.array(starts, dtype="<i8"))
    with pytest.raises(UserError, match=r"train-00000\.docs holds"):
        verify(folder)


def test_tokenizer_of_another_corpus_is_found(folder: Path) -> None:
    CharTokenizer("abc").save(folder / "tokenizer")
    with pytest.raises(UserError, match="not the tokenizer that"):
        verify(folder)
    with pytest.raises(UserError, match="not the tokenizer that made"):
        Corpus.open(folder).tokenizer()
