"""Small models, tokenizers and requests that the tests of serving share."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.serve.driver import Driver
from hgrn2.serve.engine import Engine
from hgrn2.serve.request import Delta, Event, Failure, Request, Ticket
from hgrn2.serve.settings import EngineConfig, HttpConfig, PrefixConfig
from hgrn2.serve.states import StateStore
from hgrn2.serve.templates import find_template

PROMPT = "The quick brown fox jumps over the lazy dog; then it rests. "


def make_model(vocabulary: int = 257, seed: int = 0, width: int = 32, **mixer: Any) -> LanguageModel:
    torch.manual_seed(seed)
    lower_bound = "none" if mixer.get("kind") == "gla" else "inclusive"
    config = ModelConfig(
        lower_bound=lower_bound,
        vocab_size=vocabulary, width=width, layers=2, glu_width=48, mixer=MixerConfig(**{"head_size": 8, **mixer}),
        init=InitConfig(std=0.3),
    )  # fmt: skip
    return LanguageModel(config).eval()


def make_kind(name: str) -> LanguageModel:
    """A model of each kind of state: constant ones, keys and values, both."""
    attention = MixerConfig(kind="attention", head_size=8)
    own: dict[str, dict[str, Any]] = {
        "hgru1": {"mixer": MixerConfig(kind="hgru1")},
        "wide_hgru1": {"mixer": MixerConfig(kind="wide_hgru1", expansion=4), "lower_bound": "inclusive"},
        "rglru": {"mixer": MixerConfig(kind="rglru", conv_width=4)},
        "hgru2 conv": {"mixer": MixerConfig(head_size=8, conv_width=4), "lower_bound": "inclusive"},
        "gla": {"mixer": MixerConfig(kind="gla", head_size=8)},
        "mamba": {"mixer": MixerConfig(kind="mamba", state_size=3, conv_width=4), "glu_width": 0},
        "mamba2": {"mixer": MixerConfig(kind="mamba2", head_size=8, state_size=5, conv_width=4), "glu_width": 0},
        "lru expanded": {"mixer": MixerConfig(kind="lru", expansion=4)},
        "attention": {"mixer": attention},
        "window": {"mixer": MixerConfig(kind="attention", head_size=8, window=9, conv_width=3)},
        "hybrid": {
            "mixer": MixerConfig(head_size=8), "pattern": ("hgru2", "attention"), "other": attention,
            "lower_bound": "inclusive",
        },
    }  # fmt: skip
    torch.manual_seed(0)
    values = {"lower_bound": "none", "glu_width": 48, **own[name]}
    return LanguageModel(ModelConfig(vocab_size=257, width=32, layers=2, init=InitConfig(std=0.3), **values)).eval()


KINDS = (
    "hgru1", "wide_hgru1", "rglru", "lru expanded", "hgru2 conv", "gla", "mamba", "mamba2", "attention",
    "window", "hybrid",
)  # fmt: skip


def spaced() -> Tokenizer:
    """A vocabulary that puts a space before every text, and spells 日 in three tokens of one byte."""
    from hgrn2.data.vocabulary import JsonTokenizer

    words = [f"▁{word}" for word in ("the", "a", "dog", "fox", "is", "not")]
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz.,", *words]
    merges: list[list[str]] = []
    for word in words:
        for n in range(2, len(word) + 1):
            if word[:n] not in pieces:
                pieces.append(word[:n])
            if [word[: n - 1], word[n - 1]] not in merges:
                merges.append([word[: n - 1], word[n - 1]])
    content = {
        "model": {
            "type": "BPE", "vocab": {piece: n for n, piece in enumerate(pieces)}, "merges": merges,
            "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True,
        },
        "added_tokens": [
            {"id": n, "content": pieces[n], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
            for n in range(2)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    }  # fmt: skip
    return JsonTokenizer(json.dumps(content, ensure_ascii=False))


def asked(text: str | Sequence[int] = PROMPT, seed: int = 1, **values: Any) -> Request:
    ids = np.frombuffer(text.encode(), np.uint8) if isinstance(text, str) else np.asarray(text)
    sampling = values.pop("sampling", SamplingConfig(seed=seed))
    return Request(ids=ids.astype(np.int64), sampling=sampling, **{"max_tokens": 24, **values})


def run(engine: Engine, *requests: Request, steps: int = 100_000) -> list[list[Event]]:
    """What is told of each request once all have ended."""
    tickets = [engine.submit(request) for request in requests]
    events: dict[int, list[Event]] = {}
    for ticket in tickets:
        assert isinstance(ticket, Ticket), ticket
    for _ in range(steps):
        if engine.idle:
            break
        for ticket, event in engine.step():
            events.setdefault(id(ticket), []).append(event)
    assert engine.idle
    return [events.get(id(ticket), []) for ticket in tickets]


def text_of(events: list[Event], sample: int = 0) -> str:
    for event in events:
        assert not isinstance(event, Failure), event
    return "".join(event.text for event in events if isinstance(event, Delta) and event.sample == sample)


class Running:
    """A server in a thread of this process, on a free port."""

    def __init__(
        self, model: Path, states: Path, keys: tuple[str, ...] = (), engine: dict[str, Any] | None = None,
        send_buffer: int = 0, name: str = "small", **http: Any,
    ) -> None:  # fmt: skip
        pytest.importorskip("fastapi", reason="pip install 'hgrn2[serve]'")
        from hgrn2.serve.run import make_server
        from hgrn2.serve.service import Service

        loaded = load(model, "cpu")
        engine = {"slots": 8, "chunk": 16, "prefix": PrefixConfig(cache_mb=2), **(engine or {})}
        self.config = HttpConfig(**{"port": 0, "grace_seconds": 5.0, "send_seconds": 5.0, **http})
        generator = Generator(loaded.model, loaded.need_tokenizer())
        self.engine = Engine(generator.model, generator.tokenizer, EngineConfig(**engine))
        limits = {
            "max_states": self.config.max_states,
            "max_bytes": self.config.states_mb << 20,
            "int8": self.config.states_int8,
        }
        self.store = StateStore(states, generator.model, generator.tokenizer, **limits)
        self.service = Service(generator, Driver(self.engine), self.store, find_template(None), name)
        self._socket = socket.create_server(("127.0.0.1", 0))
        if send_buffer:  # connections inherit it
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server, self._ready = make_server(self.service, self.config, keys), threading.Event()
        self.server.ready = self._ready.set
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self._socket])))
        self._thread.start()
        assert self._ready.wait(20)

    def signal(self) -> None:
        """As SIGTERM does."""
        self.server.handle_exit(15, None)

    def stop(self) -> None:
        self.signal()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._socket.close()

    def idle(self, seconds: float = 5.0) -> bool:
        """Whether the engine has nothing to do, within some seconds."""
        deadline = time.monotonic() + seconds
        while not self.engine.idle and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.engine.idle
