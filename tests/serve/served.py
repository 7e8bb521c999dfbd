"""Small models, tokenizers and requests that the tests of serving share."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.generate.config import SamplingConfig
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.serve.engine import Engine
from hgrn2.serve.request import Delta, Event, Failure, Request, Ticket

PROMPT = "The quick brown fox jumps over the lazy dog; then it rests. "


def make_model(vocabulary: int = 257, seed: int = 0, **mixer: Any) -> LanguageModel:
    torch.manual_seed(seed)
    bound = "none" if mixer.get("kind") == "gla" else "inclusive"
    config = ModelConfig(
        lower_bound=bound,
        vocab_size=vocabulary, width=32, layers=2, glu_width=48, mixer=MixerConfig(**{"head_size": 8, **mixer}),
        init=InitConfig(std=0.3),
    )  # fmt: skip
    return LanguageModel(config).eval()


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
