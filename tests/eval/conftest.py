"""Shared by the tests of evaluation: small models that speak bytes or characters, and task files of a few lines."""

import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_tasks import ITEMS

from hgrn2.data.tokenizer import ByteTokenizer, Tokenizer
from hgrn2.data.vocabulary import byte_alphabet
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

MIXERS = {
    "hgru2": MixerConfig(head_size=8),
    "conv": MixerConfig(head_size=4, conv_width=4),
    "hgru1": MixerConfig(kind="hgru1"),
}


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LanguageModel]:
    """A small random model whose outputs are far from uniform, so that choices differ and are not near ties."""

    def make(vocab_size: int = ByteTokenizer.vocab_size, mixer: str = "hgru2") -> LanguageModel:
        torch.manual_seed(0)
        config = ModelConfig(
            vocab_size=vocab_size, width=16, layers=2, glu_width=24, mixer=MIXERS[mixer], init=InitConfig(std=0.4)
        )
        return LanguageModel(config).eval()

    return make


@pytest.fixture
def saved(tmp_path: Path, make_model: Callable[..., LanguageModel]) -> Callable[..., Path]:
    """Writes a model folder with a tokenizer and returns it."""

    def write(name: str = "model", tokenizer: Tokenizer | None = None) -> Path:
        tokenizer = tokenizer or ByteTokenizer()
        save_model(tmp_path / name, make_model(tokenizer.vocab_size), tokenizer)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def word_bpe() -> str:
    """A tokenizer.json: byte-level BPE with an end of document, in which a and b make one token, as do space and n."""
    pytest.importorskip("tokenizers")
    spelt = {byte: character for character, byte in byte_alphabet().items()}
    merges = [[spelt[97], spelt[98]], [spelt[32], spelt[110]]]
    tokens = [*byte_alphabet(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    rule = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    content = {
        "added_tokens": [{"id": len(tokens) - 1, "content": tokens[-1], **flags}],
        "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges},
        "pre_tokenizer": rule,
        "decoder": rule,
    }
    return json.dumps(content, ensure_ascii=False)


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """Task files of a few items, one of them compressed."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, items in ITEMS.items():
        text = "".join(json.dumps(item) + "\n" for item in items)
        if name == "piqa":
            (folder / f"eval-{name}.jsonl.xz").write_bytes(lzma.compress(text.encode()))
        else:
            (folder / f"eval-{name}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real task files, named by HGRN2_EVAL_DATA."""
    folder = os.environ.get("HGRN2_EVAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HGRN2_EVAL_DATA does not name a folder with the task and WikiText files")
    return Path(folder)
