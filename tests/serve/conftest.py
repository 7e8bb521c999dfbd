"""Shared by the tests of serving: a small model of bytes, its engine, and its folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Running, make_model

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
        values = {"slots": 8, "chunk": 16, "prefix": PrefixConfig(cache_mb=0), **values}
        return Engine(made or model, tokenizer or ByteTokenizer(), EngineConfig(**values))

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("served") / "small"
    save_model(path, model, ByteTokenizer())
    return path


@pytest.fixture(scope="module")
def start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts servers on free ports of this machine; they end with the module."""
    running: list[Running] = []

    def begin(**values: Any) -> Running:
        values = {"states": tmp_path_factory.mktemp("states"), "model": folder, **values}
        running.append(Running(**values))
        return running[-1]

    yield begin
    for one in running:
        one.stop()
