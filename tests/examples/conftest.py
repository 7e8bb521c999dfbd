"""Shared by the tests of adapters and examples: a small model, and the examples as modules."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that reads bytes."""
    import torch

    import hgrn2
    from hgrn2.data.tokenizer import ByteTokenizer
    from hgrn2.models.saved import save_model

    torch.manual_seed(0)
    mixer = hgrn2.MixerConfig(head_size=16)
    config = hgrn2.ModelConfig(vocab_size=257, width=32, layers=2, glu_width=48, mixer=mixer)
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, hgrn2.LanguageModel(config), ByteTokenizer())
    return folder


@pytest.fixture(scope="session")
def example() -> Callable[[str], Any]:
    """A file of examples/ as a module."""

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
