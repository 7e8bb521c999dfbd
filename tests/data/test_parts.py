"""A text encoded and decoded in parts is the text encoded and decoded whole, with every kind of vocabulary."""

import json
import lzma
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrn2.data import recutting
from hgrn2.data.corpus import Corpus, prepare
from hgrn2.data.recutting import recut
from hgrn2.data.splitting import Piece
from hgrn2.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from hgrn2.data.vocabulary import JsonTokenizer
from hgrn2.generate.text import TextStream
from hgrn2.perplexity import Beginning

tokenizers = pytest.importorskip("tokenizers")
SAID = "once upon a time there was a fox, and on a day\nthe fox met  a hen. 123 días 漢字漢字, é!\n\n On the way "
KINDS = (
    "byte level", "byte level with a space", "digits", "llama", "llama with a tool", "metaspace first",
    "metaspace always", "metaspace in words", "metaspace of old files", "unigram", "strip",
)  # fmt: skip


@lru_cache
def made(kind: str) -> JsonTokenizer:
    """A small vocabulary of the kind, learned from `SAID`."""
    before, after, level = tokenizers.pre_tokenizers, tokenizers.decoders, tokenizers.pre_tokenizers.ByteLevel
    library = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback="level" not in kind, unk_token="<unk>"))
    if kind in ("byte level", "byte level with a space", "digits", "strip"):
        words = level(add_prefix_space="space" in kind)
        digits = tokenizers.Regex(r"\p{N}{1,2}|\s*[\r\n]+|\s?[^\s\p{N}]+|\s+")
        library.pre_tokenizer = words if kind != "digits" else before.Sequence(
            [before.Split(digits, "isolated"), level(add_prefix_space=False, use_regex=False)]
        )  # fmt: skip
        library.decoder = after.ByteLevel()
        if kind == "strip":
            library.normalizer = tokenizers.normalizers.Strip(left=True, right=False)
    elif kind.startswith("llama"):
        normal = tokenizers.normalizers
        library.normalizer = normal.Sequence([normal.Prepend("▁"), normal.Replace(" ", "▁")])
        library.decoder = after.Sequence(
            [after.Replace("▁", " "), after.ByteFallback(), after.Fuse(), after.Strip(" ", 1, 0)]
        )
    else:
        scheme = "first" if "first" in kind else "always"
        library.pre_tokenizer = before.Metaspace("▁", prepend_scheme=scheme, split="words" in kind)
        library.decoder = after.Metaspace("▁", prepend_scheme=scheme)
    special = ["<unk>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    if kind == "unigram":
        library.model = tokenizers.models.Unigram()
        trainer = tokenizers.trainers.UnigramTrainer(
            vocab_size=100, special_tokens=special[:2], unk_token="<unk>", show_progress=False
        )
    else:
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, show_progress=False, initial_alphabet=level.alphabet()
        )
    library.train_from_iterator([SAID] * 3, trainer)
    if kind == "llama with a tool":
        library.add_tokens(["<tool>"])
    content = json.loads(library.to_str())
    if kind == "metaspace of old files":
        for key in ("pre_tokenizer", "decoder"):
            content[key] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    return JsonTokenizer(json.dumps(content))


def in_parts(tokenizer: Tokenizer, text: str, size: int, limit: int) -> list[int]:
    """Ids of a text that comes in pieces of `size` and is encoded in parts of about `limit` characters."""
    pieces = [Piece(text[n : n + size], n + size >= len(text)) for n in range(0, len(text), size)]
    parts = list(recut(iter(pieces), tokenizer, limit))
    assert "".join(part.text for part in parts) == text
    encoded = tokenizer.encode_documents([part.text for part in parts], [part.continues for part in parts])
    return [index for ids in encoded for index in ids.tolist()]


WORDS = st.sampled_from(
    ["once", " ", "  ", " upon", "a", "\n", "\n\n", ", ", "12345", "漢", "漢字", "é", "e\u0301", ".", "\t", "fox"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=30).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS, limit=st.integers(1, 12))
def test_parts_have_the_ids_of_the_whole(kind: str, text: str, limit: int) -> None:
    tokenizer = made(kind)
    assert in_parts(tokenizer, text, 7, limit) == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(first=TEXTS, second=TEXTS)
def test_a_continuation_neither_adds_nor_loses_characters(kind: str, first: str, second: str) -> None:
    tokenizer = made(kind)
    if kind == "unigram":  # it has no bytes: what it does not know is lost
        first, second = (re.sub("\u0301|[45\t]", "", text) for text in (first, second))
    first = "o" + first  # at the very beginning a space and none may look alike
    ids = [*tokenizer.encode(first).tolist(), *tokenizer.encode(second, continues=True).tolist()]
    assert tokenizer.decode(ids) == first + second
    one, other = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    joined = tokenizer.decode_bytes(one) + tokenizer.decode_bytes(other, continues=True)
    assert joined == (first + second).encode()
    assert tokenizer.bytes_per(one) + tokenizer.bytes_per(other, continues=bool(one)) == len(joined)
    begun = TextStream(tokenizer)
    shown = "".join(map(begun.push, one))
    going_on = TextStream(tokenizer, one, begun.pending)
    assert shown + "".join(map(going_on.push, other)) == first + second


def test_what_goes_on_after_an_added_token_begins_as_in_the_whole() -> None:
    tokenizer = made("llama with a tool")
    whole = tokenizer.encode("once<tool>upon")
    assert [*tokenizer.encode("on"), *tokenizer.encode("ce<tool>upon", continues=True)][-3:] == whole.tolist()[-3:]


def test_a_text_after_the_end_of_another_begins_anew() -> None:
    tokenizer = made("llama")
    ids = [*tokenizer.encode("once"), tokenizer.eot, *tokenizer.encode("upon")]
    assert tokenizer.decode_bytes(ids) == b"onceupon"
    assert tokenizer.bytes_per(ids) == 8
    corpus = Corpus.from_documents(["once upon", "a time", "once"] * 4, tokenizer)
    for length in range(2, corpus.n_tokens + 1):
        part = corpus.read(0, length)
        assert Beginning(corpus, length, tokenizer).text_bytes == len(tokenizer.decode_bytes(part))


def test_counting_bytes_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = made("metaspace always")
    corpus = Corpus.from_documents(["once upon a time", "on a day", "once"] * 3, tokenizer)
    whole = Beginning(corpus, corpus.n_tokens - 1, tokenizer).text_bytes
    for size in (1, 2, 5):
        monkeypatch.setattr("hgrn2.perplexity.BYTES_AT_ONCE", size)
        assert Beginning(corpus, corpus.n_tokens - 1, tokenizer).text_bytes == whole


def test_a_character_left_unfinished_is_finished_by_what_comes() -> None:
    ids = list("a日b".encode())
    for cut in range(1, len(ids)):
        first = TextStream(ByteTokenizer())
        text = "".join(map(first.push, ids[:cut]))
        second = TextStream(ByteTokenizer(), ids[cut - 1 : cut], first.pending)
        assert text + "".join(map(second.push, ids[cut:])) == "a日b"


def test_long_documents_of_a_corpus_have_the_ids_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recutting, "PART", 40)
    monkeypatch.setattr("hgrn2.data.units.BLOCK", 64)
    text = SAID.replace("  ", " ") * 5
    (tmp_path / "a.txt").write_text(text)
    tokenizer = made("llama")
    prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer, valid_fraction=0)
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.read(0, corpus.n_tokens - 1).tolist() == tokenizer.encode(text).tolist()
    assert corpus.n_documents == 1


def test_a_word_without_end_is_encoded_whole() -> None:
    tokenizer = made("byte level")
    assert in_parts(tokenizer, "on" * 400, 50, 20) == tokenizer.encode("on" * 400).tolist()


@pytest.mark.parametrize(
    "name", ["gpt2-vocab.bpe.xz", "gpt-neox-20b-tokenizer.json.xz", "mistral-v1-tokenizer.model.xz"]
)
def test_real_vocabularies(real: Callable[[str], Path], name: str) -> None:
    tokenizer = mistral(real(name)) if name.startswith("mistral") else load_tokenizer(real(name))
    text = lzma.decompress(real("wikitext2-raw-test.txt.xz").read_bytes()).decode()[:60_000] + SAID
    assert in_parts(tokenizer, text, 5000, 1500) == tokenizer.encode(text).tolist()
    for first, second in (("Once", " upon a time"), ("Once ", "upon"), ("On", "ce"), ("One\n", "\ntwo  three 漢")):
        ids = [*tokenizer.encode(first).tolist(), *tokenizer.encode(second, continues=True).tolist()]
        assert tokenizer.decode(ids) == first + second


def mistral(path: Path) -> JsonTokenizer:
    """The SentencePiece model as a tokenizer.json of Llama's kind."""
    pieces = sentencepiece_pieces(lzma.decompress(path.read_bytes()))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # As published conversions do it: every split of a piece into two others, those of the earliest piece first.
    merges = []
    for index, piece in enumerate(pieces[259:], 259):
        halves = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        known = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
        merges += [(index, vocabulary[a], vocabulary[b], a, b) for a, b in known]
    content: dict[str, Any] = json.loads(json.dumps(made("llama")._content))
    content["model"] |= {"vocab": vocabulary, "merges": [[a, b] for *_, a, b in sorted(merges)], "fuse_unk": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": n, "content": pieces[n], **special} for n in range(3)]
    return JsonTokenizer(json.dumps(content))


def sentencepiece_pieces(data: bytes) -> list[str]:
    """The pieces of a SentencePiece model in order: field 1 of the protocol buffer, and field 1 of each of these."""

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                return value, at

    pieces, at = [], 0
    while at < len(data):
        key, at = number(at)
        size, at = number(at)
        if key == 0x0A:
            length = data[at + 1]
            assert data[at] == 0x0A
            assert length < 0x80
            pieces.append(data[at + 2 : at + 2 + length].decode())
        at += size
    return pieces
