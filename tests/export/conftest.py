"""Small models in folders, and what skips without the extra."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.data.tokenizer import ByteTokenizer, Tokenizer
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def libraries() -> None:
    """Every test here runs graphs."""
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"the ONNX export needs {name}: pip install 'hgrn2[onnx]'")


@pytest.fixture
def made() -> Make:
    """make(folder, tokenizer, **changes): a model folder of random weights, which writes printable ASCII."""

    def make(folder: Path, tokenizer: Tokenizer | None = None, **changes: Any) -> Path:
        tokenizer = tokenizer or ByteTokenizer()
        values = {"vocab_size": tokenizer.vocab_size, "width": 32, "layers": 2, "glu_width": 48}
        values |= {"mixer": MixerConfig(head_size=16, conv_width=4)} | changes
        torch.manual_seed(1)
        model = LanguageModel(ModelConfig(**values))
        with torch.no_grad():
            model.embedding.weight *= 30  # so that texts do not repeat one letter
            if model.head is not None and tokenizer.kind == "bytes":
                model.head.weight[:32] = 0  # the largest of 95 random logits is above 0
                model.head.weight[127:] = 0
        save_model(folder, model, tokenizer)
        return folder

    return make
