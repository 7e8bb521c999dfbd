"""Shared by the tests of generation: small models that speak bytes or characters, saved ones, and a small BPE."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from hgrn2.data.vocabulary import byte_alphabet
from hgrn2.generate.generator import Generator
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

MIXERS = {
    "hgru2": MixerConfig(head_size=8),
    "conv": MixerConfig(head_size=4, conv_width=4),
    "hgru1": MixerConfig(kind="hgru1"),
    "hgru1_real": MixerConfig(kind="hgru1_real"),
}
CHARACTERS = "abcdefgh .\n"


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LanguageModel]:
    """A small random model whose outputs are far from uniform, so that choices differ and are not near ties."""

    def make(vocab_size: int = len(CHARACTERS), mixer: str = "hgru2", seed: int = 0) -> LanguageModel:
        torch.manual_seed(seed)
        config = ModelConfig(
            vocab_size=vocab_size, width=16, layers=2, glu_width=24, mixer=MIXERS[mixer], init=InitConfig(std=0.4)
        )
        return LanguageModel(config).eval()

    return make


@pytest.fixture
def chars(make_model: Callable[..., LanguageModel]) -> Generator:
    """A generator of characters."""
    return Generator(make_model(), CharTokenizer(CHARACTERS))


@pytest.fixture
def bytewise(make_model: Callable[..., LanguageModel]) -> Generator:
    """A generator of bytes, whose random output is mostly not UTF-8."""
    return Generator(make_model(ByteTokenizer.vocab_size), ByteTokenizer())


@pytest.fixture
def saved(tmp_path: Path, make_model: Callable[..., LanguageModel]) -> Callable[..., Path]:
    """Writes a model folder with a tokenizer and returns it."""

    def write(name: str = "model", tokenizer: Tokenizer | None = None, seed: int = 0) -> Path:
        tokenizer = tokenizer or CharTokenizer(CHARACTERS)
        save_model(tmp_path / name, make_model(tokenizer.vocab_size, seed=seed), tokenizer)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """A byte-level BPE whose tokens are bytes, é, ab, and two of the three bytes of 日."""
    pytest.importorskip("tokenizers")
    from hgrn2.data.vocabulary import JsonTokenizer

    spelt = {byte: character for character, byte in byte_alphabet().items()}
    merges = [[spelt[a], spelt[b]] for a, b in ("é".encode(), b"ab", "日".encode()[:2])]
    tokens = [*byte_alphabet(), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    content = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    }
    return JsonTokenizer(json.dumps(content, ensure_ascii=False))
