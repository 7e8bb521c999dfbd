"""A small model whose page is looked at."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hgrn2.data.tokenizer import CharTokenizer, Tokenizer
from hgrn2.generate.generator import Generator
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

LETTERS = "".join(chr(code) for code in range(32, 127)) + "\né日"


def save(folder: Path, tokenizer: Tokenizer | None = None) -> Path:
    """A model folder of random weights whose texts do not repeat a letter."""
    tokenizer = tokenizer or CharTokenizer(LETTERS)
    torch.manual_seed(2)
    mixer = MixerConfig(head_size=16, conv_width=3)
    model = LanguageModel(ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=3, glu_width=48, mixer=mixer, init=InitConfig(std=0.4)
    ))  # fmt: skip
    save_model(folder, model, tokenizer)
    return folder


@dataclass
class Exported:
    """A model and its page."""

    model: Path
    folder: Path
    generator: Generator
