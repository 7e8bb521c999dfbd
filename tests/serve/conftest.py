"""Shared by the tests of serving: a small model of bytes, its engine, and its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import make_model

from hgrn2.data.tokenizer import ByteTokenizer, Tokenizer
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model
from hgrn2.serve.engine import Engine
from hgrn2.serve.settings import EngineConfig, PrefixConfig


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture
def make_engine(model: LanguageModel) -> Callable[..., Engine]:
    def make(tokenizer: Tokenizer | None = None, made: LanguageModel | None = None, **values: Any) -> Engine:
        values = {"slots": 8, "chunk": 16, "prefix": PrefixConfig(memory_mb=0), **values}
        return Engine(made or model, tokenizer or ByteTokenizer(), EngineConfig(**values))

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("served") / "small"
    save_model(path, model, ByteTokenizer())
    return path
