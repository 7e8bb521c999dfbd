"""Bytes and characters: round trips, identity, saving, how to name a tokenizer, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn2.data.tokenizer import SAVED_NAME, ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer
from hgrn2.errors import UserError

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS)
def test_bytes_give_every_text_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_per([*ids, 256]) == len(text.encode())


def test_bytes_decode_parts_and_separators() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("é")
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert b"".join(tokenizer.decode_bytes([index]) for index in ids) == "é".encode()
    assert tokenizer.decode([104, tokenizer.eot, 105]) == "hi"
    assert tokenizer.decode([]) == ""


@given(st.lists(TEXTS, min_size=1).filter(any))
def test_chars_give_every_text_back(texts: list[str]) -> None:
    tokenizer = CharTokenizer.from_text(texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.bytes_per(ids) == len(text.encode())


def test_chars_are_sorted_and_have_no_separator() -> None:
    tokenizer = CharTokenizer.from_text("banana é")
    assert tokenizer.characters == " abné"
    assert (tokenizer.vocab_size, tokenizer.eot) == (5, None)
    assert tokenizer.encode("ban").tolist() == [2, 1, 3]


def test_unknown_character_is_named() -> None:
    with pytest.raises(UserError, match=r"'z' \(U\+007A\) at position 1 is not among the 3"):
        CharTokenizer("abc").encode("azb")
    with pytest.raises(UserError, match="at least one character"):
        CharTokenizer.from_text("")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abc")])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    for method in (tokenizer.decode, tokenizer.decode_bytes, tokenizer.bytes_per):
        with pytest.raises(UserError, match=f"token id {size} at position 1 is outside this vocabulary of {size}"):
            method([0, size])
        with pytest.raises(UserError, match="token id -1 at position 0"):
            method(np.array([-1]))
    with pytest.raises(UserError, match="whole numbers"):
        tokenizer.decode(np.array([0.5]))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abc")])
def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate pair at position 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abcé")])
def test_saved_tokenizers_come_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "corpus" / "tokenizer")
    for spec in (
        tmp_path / "corpus",
        tmp_path / "corpus" / "tokenizer",
        tmp_path / "corpus" / "tokenizer" / SAVED_NAME,
    ):
        loaded = load_tokenizer(spec)
        assert type(loaded) is type(tokenizer)
        assert loaded.identity() == tokenizer.identity()
        assert loaded.encode("cab").tolist() == tokenizer.encode("cab").tolist()


def test_saved_tokenizer_that_was_changed_is_refused(tmp_path: Path) -> None:
    CharTokenizer("abc").save(tmp_path)
    path = tmp_path / SAVED_NAME
    saved = json.loads(path.read_text())
    for change, message in (
        ({"characters": "abd"}, "checksum differs"),
        ({"characters": 3}, "lacks its characters"),
        ({"kind": "other"}, "unknown kind 'other'"),
        ({"format": 9}, "format 9"),
    ):
        path.write_text(json.dumps({**saved, **change}))
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path)
    path.write_text("[]")
    with pytest.raises(UserError, match="must hold an object, not a list"):
        load_tokenizer(tmp_path)


def test_identities_differ_where_encodings_do() -> None:
    sums = [t.identity()["sha256"] for t in (ByteTokenizer(), CharTokenizer("abc"), CharTokenizer("abd"))]
    assert len(set(sums)) == 3
    assert CharTokenizer("cba").identity() == CharTokenizer("abc").identity()


def test_specs(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)
    assert load_tokenizer("chars", text=["ab", "bc"]).vocab_size == 3
    with pytest.raises(UserError, match="built from a text"):
        load_tokenizer("chars")
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "a.model").write_bytes(b"")
    with pytest.raises(UserError, match="SentencePiece"):
        load_tokenizer(tmp_path / "a.model")
