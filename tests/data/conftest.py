"""Shared by the tests of data: small inputs that they make."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from hgrn2.data.tokenizer import Tokenizer, load_tokenizer
from hgrn2.data.vocabulary import byte_alphabet

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello")]


def write_gpt2(folder: Path, merges: str, vocabulary: str, compressed: bool = False) -> Path:
    """A small GPT-2-style vocabulary: 256 bytes, a few merges, <|endoftext|>."""
    folder.mkdir(exist_ok=True)
    tokens = [*byte_alphabet(), *("".join(pair) for pair in MERGES), "<|endoftext|>"]
    texts = {
        merges: "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES),
        vocabulary: json.dumps({token: index for index, token in enumerate(tokens)}),
    }
    for name, text in texts.items():
        if compressed:
            (folder / f"{name}.xz").write_bytes(lzma.compress(text.encode()))
        else:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def gpt2_files(tmp_path: Path) -> Callable[..., Path]:
    """Writes `write_gpt2` under given names into a folder of its own and returns the folder."""
    pytest.importorskip("tokenizers")
    return lambda *names: write_gpt2(tmp_path / "vocabulary", *names)


@pytest.fixture(scope="session")
def small_bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of `write_gpt2`, once for all tests."""
    pytest.importorskip("tokenizers")
    return load_tokenizer(write_gpt2(tmp_path_factory.mktemp("bpe"), "vocab.bpe", "encoder.json"))


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes texts as JSONL under a name in the test's folder."""

    def write(texts: list[str], name: str = "documents.jsonl", field: str = "text") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write
