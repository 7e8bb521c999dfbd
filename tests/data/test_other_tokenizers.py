"""SentencePiece models and tiktoken encodings: as their libraries encode, in parts as whole, saved, and refused."""

import base64
import gzip
import io
import json
import lzma
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrn2.data.corpus import Corpus, prepare
from hgrn2.data.recutting import recut
from hgrn2.data.sentencepiece_model import SentencePieceTokenizer
from hgrn2.data.splitting import Piece
from hgrn2.data.tiktoken_ranks import TiktokenTokenizer
from hgrn2.data.tokenizer import Tokenizer, load_tokenizer
from hgrn2.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece")
tiktoken = pytest.importorskip("tiktoken")
SAID = "once upon a time there was a fox, and on a day\nthe fox met  a hen. 123 días 漢字漢字, é! On the way home "
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
SPECIAL = {"<|endoftext|>": 300, "<|tool|>": 302}
KINDS = ("llama", "unigram", "unigram without a space", "with symbols", "tiktoken")


@lru_cache
def model(kind: str) -> bytes:
    """A small SentencePiece model of the kind, learned from `SAID`."""
    written = io.BytesIO()
    how: dict[str, Any] = {"model_type": "unigram", "vocab_size": 70, "hard_vocab_limit": False}
    if kind in ("llama", "with symbols"):
        how = {"model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity"}
        how |= {"remove_extra_whitespaces": False, "split_digits": True}
    if kind == "with symbols":
        how["user_defined_symbols"] = ["<tool>", "on a"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SAID] * 5), model_writer=written, minloglevel=2, num_threads=1,
        add_dummy_prefix=kind != "unigram without a space", **how,
    )  # fmt: skip
    return written.getvalue()


def ranks() -> dict[bytes, int]:
    merged = [b"on", b"ce", b"once", b" on", b" a", b" the", b"fo", b"fox", b" fox", b"\n\n", b"  ", b"12"]
    return {bytes([n]): n for n in range(256)} | {token: 256 + n for n, token in enumerate(merged)}


@lru_cache
def made(kind: str) -> Tokenizer:
    return TiktokenTokenizer(ranks(), PATTERN, SPECIAL) if kind == "tiktoken" else SentencePieceTokenizer(model(kind))


def theirs(kind: str, text: str) -> list[int]:
    """As the library itself encodes."""
    if kind == "tiktoken":
        library = tiktoken.Encoding("x", pat_str=PATTERN, mergeable_ranks=ranks(), special_tokens=SPECIAL)
        return library.encode_ordinary(text)
    return sentencepiece.SentencePieceProcessor(model_proto=model(kind)).encode(text)


WORDS = st.sampled_from(
    ["once", " ", "  ", " upon", "a", "\n", "\n\n", ", ", "123", "漢字", "é", "e\u0301", ".", "\t", "fox", "on a",
     "<tool>", "</s>", "<|endoftext|>", "<0x41>", "ﬁ", "\x00", "🙂"]
)  # fmt: skip
TEXTS = st.lists(WORDS, min_size=1, max_size=25).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, other=TEXTS, limit=st.integers(1, 12))
def test_ids_are_the_librarys_whole_and_in_parts(kind: str, text: str, other: str, limit: int) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == theirs(kind, text)
    pieces = [Piece(text[n : n + 7], n + 7 >= len(text)) for n in range(0, len(text), 7)]
    parts = list(recut(iter(pieces), tokenizer, limit))
    encoded = tokenizer.encode_documents([part.text for part in parts], [part.continues for part in parts])
    assert np.concatenate(encoded).tolist() == ids.tolist()
    assert tokenizer.eot not in ids
    if kind in ("llama", "with symbols", "tiktoken"):  # which know every byte and leave spaces as they are
        going_on = [*ids, *tokenizer.encode(other, continues=True)]
        assert tokenizer.decode(going_on) == text + other
        half = len(going_on) // 2
        joined = tokenizer.decode_bytes(going_on[:half]) + tokenizer.decode_bytes(going_on[half:], continues=half > 0)
        assert joined == (text + other).encode()
    elif kind == "unigram":
        library = sentencepiece.SentencePieceProcessor(model_proto=model(kind))
        assert tokenizer.decode(ids) == library.decode(ids.tolist()).replace(" ⁇ ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_sent_and_used_for_a_corpus(
    tmp_path: Path, write_lines: Callable[..., Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = made(kind)
    tokenizer.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path)
    assert again.identity() == tokenizer.identity() == pickle.loads(pickle.dumps(tokenizer)).identity()
    assert again.encode(SAID).tolist() == tokenizer.encode(SAID).tolist()
    path = write_lines([SAID] * 9)
    for processes in (1, 2) if kind in ("llama", "tiktoken") else (1,):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
        out = tmp_path / f"corpus{processes}"
        prepare([path], out, tmp_path / "tokenizer", valid_fraction=0.2, processes=processes)
        corpus = Corpus.open(out)
        assert corpus.tokenizer().identity() == tokenizer.identity()
        assert corpus.read(0, 20).tolist() == tokenizer.encode(SAID)[:20].tolist()
        assert corpus.n_documents == 7
    damaged = tmp_path / "tokenizer" / ("tokenizer.tiktoken" if kind == "tiktoken" else "tokenizer.model")
    other = model("llama" if kind != "llama" else "unigram") if kind != "tiktoken" else lines({**ranks(), b"zz": 290})
    damaged.write_bytes(other)
    with pytest.raises(UserError, match=r"not the one that was saved \(checksum differs\)"):
        load_tokenizer(tmp_path)


def lines(found: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in found.items())


def test_files_of_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, beside = tmp_path / "mine.tiktoken", tmp_path / "mine.json"
    path.write_bytes(lines(ranks()))
    with pytest.raises(UserError, match=r"mine\.tiktoken needs .*mine\.json beside it"):
        load_tokenizer(path)
    beside.write_text(json.dumps({"pattern": PATTERN, "special_tokens": SPECIAL}))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.eot) == (303, 300)
    assert tokenizer.identity() == made("tiktoken").identity()
    (tmp_path / "mine.tiktoken.gz").write_bytes(gzip.compress(lines(ranks())))
    assert load_tokenizer(tmp_path / "mine.tiktoken.gz").identity() == tokenizer.identity()
    good = lines(ranks())
    for data, values, message in (
        (good[7:], {}, "no token for byte"),
        (b"YQ== x\n", {}, r"mine\.tiktoken:1: not a token"),
        (good + b"!!! 400\n", {}, r"mine\.tiktoken:269: not a token"),
        (good + b"YQ== 400\n", {}, "not a token in base64"),
        (good + b"enp6 300\n", {}, "an id stands for two tokens"),
        (good + b"enp6 999999999\n", {}, "ids must be whole numbers"),
        (good, {"special_tokens": {"<x>": "1"}}, "ids must be whole numbers"),
        (good, {"special_tokens": [1]}, "must be an object"),
        (good, {"pattern": "("}, "the pattern cannot be used"),
        (good, {"pattern": 5}, "lacks the pattern"),
    ):
        path.write_bytes(data)
        beside.write_text(json.dumps({"pattern": PATTERN, "special_tokens": SPECIAL} | values))
        with pytest.raises(UserError, match=message):
            load_tokenizer(path)
    (tmp_path / "cl100k_base.tiktoken").write_bytes(good)
    with pytest.raises(UserError, match="is not tiktoken's cl100k_base: its checksum differs"):
        load_tokenizer(tmp_path / "cl100k_base.tiktoken")
    with pytest.raises(UserError, match=r"tokenizer tiktoken:nothing: tiktoken knows .*o200k_base"):
        load_tokenizer("tiktoken:nothing")

    def offline(name: str) -> None:
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded: no route to gpt2; give its \.tiktoken file instead"):
        load_tokenizer("tiktoken:gpt2")


def test_a_pattern_without_end_is_told(tmp_path: Path) -> None:
    tokenizer = TiktokenTokenizer(ranks(), r"((a|aa)\2?)+b|.", {"<eos>": 400})
    with pytest.raises(UserError, match="the pattern cannot split this text"):
        tokenizer.encode("a" * 60)


def test_bad_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "a.model", model("llama")
    suffix = good + bytes([2 << 3 | 2, 3, 0xC0, 1, 1])  # treat_whitespace_as_suffix of the trainer
    for data, message in (
        (b"", "has no pieces"), (b"\x0a", "is cut off"), (b"some text", "is not a SentencePiece model"),
        (good[: len(good) // 2], "is cut off|is not a usable"), (good[:-30], "is cut off|is not a usable"),
        (b"\x0a\x03\x0a\x01a", "is not a usable SentencePiece model"), (suffix, "writes spaces after words"),
        (good.replace(b"<unk>", b"<u\xff\xfe>"), "is not a usable"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            load_tokenizer(path)
    path.write_bytes(good)
    assert load_tokenizer(path).eot == 2
    (tmp_path / "tokenizer.model").write_bytes(good)
    assert load_tokenizer(tmp_path).identity() == load_tokenizer(path).identity()


def test_real_model_and_encoding(real: Callable[[str], Path]) -> None:
    text = lzma.decompress(real("wikitext2-raw-test.txt.xz").read_bytes()).decode()[:40_000] + SAID
    path = real("mistral-v1-tokenizer.model.xz")
    mistral = load_tokenizer(path)
    assert (mistral.vocab_size, mistral.eot) == (32_000, 2)
    library = sentencepiece.SentencePieceProcessor(model_proto=lzma.decompress(path.read_bytes()))
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks  # noqa: F401 (the library is complete)

    gpt2 = load_tokenizer(real("gpt2-encoder.json.xz"))
    content = json.loads(gpt2.text)["model"]["vocab"]  # pyright: ignore
    from hgrn2.data.vocabulary import byte_alphabet

    alphabet = byte_alphabet()
    found = {bytes(alphabet[c] for c in token): n for token, n in content.items() if n != 50256}
    ours = TiktokenTokenizer(found, PATTERN, {"<|endoftext|>": 50256})
    for tokenizer, wanted in ((mistral, library.encode(text)), (ours, gpt2.encode(text).tolist())):
        ids = tokenizer.encode(text).tolist()
        assert ids == wanted
        assert tokenizer.decode(ids) == text
        parts = list(recut(iter([Piece(text, True)]), tokenizer, 1500))
        assert len(parts) > 20
        encoded = tokenizer.encode_documents([part.text for part in parts], [part.continues for part in parts])
        assert np.concatenate(encoded).tolist() == ids
