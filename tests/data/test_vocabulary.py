"""Vocabularies from files: GPT-2's pair under all its names, any tokenizer.json, real ones, and broken ones."""

import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn2.data.tokenizer import Tokenizer, load_tokenizer
from hgrn2.data.vocabulary import JsonTokenizer
from hgrn2.errors import UserError

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize("names", [("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json")])
@pytest.mark.parametrize("prefix", ["", "small-"])
@pytest.mark.parametrize("compressed", [False, True])
def test_gpt2_files_under_every_name(
    gpt2_files: Callable[..., Path],
    small_bpe: Tokenizer,
    names: tuple[str, str],
    prefix: str,
    compressed: bool,
    tmp_path: Path,
) -> None:
    folder = gpt2_files(prefix + names[0], prefix + names[1], compressed)
    for spec in (folder, *folder.iterdir()):
        tokenizer = load_tokenizer(spec)
        assert (tokenizer.vocab_size, tokenizer.eot) == (262, 261)
        assert tokenizer.encode("hello hello").tolist() == [259, 260]
        assert tokenizer.identity() == small_bpe.identity()
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").identity() == small_bpe.identity()


@given(TEXTS)
def test_byte_level_gives_every_text_back(small_bpe: Tokenizer, text: str) -> None:
    ids = small_bpe.encode(text)
    assert small_bpe.decode(ids) == text
    assert small_bpe.bytes_per(ids) == len(text.encode())
    assert b"".join(small_bpe.decode_bytes([index]) for index in ids) == text.encode()


def test_batches_encode_as_single_texts_do(small_bpe: Tokenizer) -> None:
    texts = ["hello", "", "shell hello\n", "é"]
    encoded = small_bpe.encode_documents(texts)
    assert [ids.tolist() for ids in encoded] == [small_bpe.encode(text).tolist() for text in texts]


def test_spelling_of_the_separator_is_text(small_bpe: Tokenizer) -> None:
    ids = small_bpe.encode("a<|endoftext|>b")
    assert small_bpe.eot not in ids
    assert small_bpe.decode(ids) == "a<|endoftext|>b"
    assert small_bpe.decode([0, small_bpe.eot, 1]) == small_bpe.decode([0, 1])
    assert small_bpe.bytes_per([small_bpe.eot]) == 0


def test_ids_outside_the_vocabulary_are_refused(small_bpe: Tokenizer) -> None:
    for method in (small_bpe.decode, small_bpe.decode_bytes, small_bpe.bytes_per):
        with pytest.raises(UserError, match="token id 262 at position 0 is outside this vocabulary of 262"):
            method([262])
    with pytest.raises(UserError, match="surrogate pair"):
        small_bpe.encode("\udfff")


def test_truncation_padding_and_added_ends_are_off(gpt2_files: Callable[..., Path], tmp_path: Path) -> None:
    import tokenizers

    source = load_tokenizer(gpt2_files("vocab.bpe", "encoder.json"))
    source.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(3)
    library.enable_padding(length=8)
    ends = [("<|endoftext|>", 261)]
    library.post_processor = tokenizers.processors.TemplateProcessing("$A <|endoftext|>", special_tokens=ends)
    changed = tmp_path / "other-tokenizer.json"
    library.save(str(changed))
    tokenizer = load_tokenizer(changed)
    assert tokenizer.encode("hello hello hello hello hello").tolist() == [259, 260, 260, 260, 260]
    assert tokenizer.identity() != source.identity()


def test_sentencepiece_like_vocabulary() -> None:
    tokens = ["<unk>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "▁", "h", "i", "▁h", "▁hi"]
    content = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 1,
                "content": "</s>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [["▁", "h"], ["▁h", "i"]],
        },
    }
    pytest.importorskip("tokenizers")
    tokenizer = JsonTokenizer(json.dumps(content))
    text = " hi é\n hi"
    ids = tokenizer.encode(text)
    assert ids.tolist() == [9, 5, 3, 4, 2, 9]
    assert tokenizer.eot == 1
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.decode_bytes([index]) for index in ids) == text.encode()
    assert tokenizer.bytes_per([*ids, 1]) == len(text.encode())


def test_vocabulary_whose_tokens_have_no_bytes_of_their_own() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.decoder = tokenizers.decoders.WordPiece()
    tokenizer = JsonTokenizer(library.to_str())
    ids = tokenizer.encode("playing play")
    assert ids.tolist() == [1, 2, 1]
    assert tokenizer.eot is None
    assert tokenizer.decode(ids) == "playing play"
    assert tokenizer.bytes_per(ids) == len("playing play")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object, not a list"),
        ('{"model": {"type": "BPE", "vocab": 3}}', "not a usable"),
    ],
)
def test_broken_tokenizer_json(tmp_path: Path, content: str, message: str) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)
    path.write_bytes(b"\xff{}")
    with pytest.raises(UserError, match="not UTF-8 at byte 0"):
        load_tokenizer(tmp_path)


def test_broken_gpt2_files(gpt2_files: Callable[..., Path]) -> None:
    folder = gpt2_files("vocab.bpe", "encoder.json")
    vocabulary, merges = (folder / "encoder.json").read_text(), (folder / "vocab.bpe").read_text()
    (folder / "vocab.bpe").write_text(merges + "a b c\n")
    with pytest.raises(UserError, match=r"vocab\.bpe:7: a merge is two tokens"):
        load_tokenizer(folder)
    (folder / "vocab.bpe").write_text(merges + "q z\n")
    with pytest.raises(UserError, match="not a usable"):
        load_tokenizer(folder)
    (folder / "encoder.json").write_text('{"a": "b"}')
    with pytest.raises(UserError, match="is not a vocabulary"):
        load_tokenizer(folder)
    (folder / "encoder.json").unlink()
    with pytest.raises(UserError, match="belong together"):
        load_tokenizer(folder / "vocab.bpe")
    for name in ("a-", "b-"):
        (folder / f"{name}encoder.json").write_text(vocabulary)
        (folder / f"{name}vocab.bpe").write_text(merges)
    with pytest.raises(UserError, match=r"several vocabularies \(a-vocab\.bpe, b-vocab\.bpe\)"):
        load_tokenizer(folder)
    assert load_tokenizer(folder / "b-encoder.json").vocab_size == 262


def test_missing_library_is_explained(gpt2_files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gpt2_files("vocab.bpe", "encoder.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install hgrn2\[text\]"):
        load_tokenizer(folder)


def test_real_gpt2(real: Callable[[str], Path]) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = load_tokenizer(real("gpt2-vocab.bpe.xz"))
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    text = lzma.decompress(real("wikitext2-raw-test.txt.xz").read_bytes()).decode()[:200_000]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_per(ids) == len(text.encode())


def test_real_neox(real: Callable[[str], Path]) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = load_tokenizer(real("gpt-neox-20b-tokenizer.json.xz"))
    assert (tokenizer.vocab_size, tokenizer.eot) == (50277, 0)
    text = "def f(x):\n        return x  # plain ASCII, and spaces that are tokens of their own\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bytes_per(tokenizer.encode(text)) == len(text)
