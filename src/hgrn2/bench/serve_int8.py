"""What it costs to hold a state in eight bits: bytes, and the text that goes on from it beside the exact one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.files import read_text
from hgrn2.generate.compact import Held, StateBytes
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.progress import Progress

PLACES = 8
"""Of the text, each with a context of its own."""
MOST = 64 << 20
"""Bytes of a text file."""


@dataclass(frozen=True)
class Cost:
    """Of one way to hold states."""

    held: Held
    bytes: int
    nats: list[float]
    """Nats/token of what follows each context."""
    greedy: list[int]
    """Greedy tokens that are those of the exact state, before the first that is not."""


def text_of(model: LanguageModel, tokenizer: Tokenizer, path: Path | None, tokens: int, seed: int) -> Tensor:
    """At least `tokens` ids [n]: of a file, or what the model writes itself at temperature 1."""
    if path is not None:
        ids = torch.from_numpy(tokenizer.encode(read_text(path, MOST)).astype(np.int64))
    else:
        config = GenerationConfig(max_tokens=tokens, sampling=SamplingConfig(seed=seed), stop_at_eot=False)
        first = int(torch.randint(tokenizer.vocab_size - 1, (1,), generator=torch.Generator().manual_seed(seed)))
        ids = torch.tensor([first, *Generator(model, tokenizer).generate([first], config)[0].ids])
    if len(ids) < tokens:
        raise UserError(f"{path} has {len(ids):,} tokens; {tokens:,} are needed")
    return ids


def measure(model: LanguageModel, ids: Tensor, context: int, new: int, progress: Progress) -> list[Cost]:
    """Costs of exact states and of those in eight bits: contexts of `context` tokens, and `new` tokens after each."""
    starts = [round(x) for x in np.linspace(0, len(ids) - context - new - 1, PLACES)]
    codes = [StateBytes(model.zeros(1), held) for held in ("exact", "int8")]
    found = [Cost(code.held, code.size(context), [], []) for code in codes]
    for number, start in enumerate(starts):
        progress("states in eight bits", number, len(starts))
        with reading(model):
            _, state = model.hidden(ids[None, start : start + context])
            assert state is not None
            rest = ids[start + context : start + context + new + 1]
            exact: list[int] = []
            for code, cost in zip(codes, found, strict=True):
                begun = code.unpack(code.pack(state), context)
                cost.nats.append(_nats(model, rest, begun))
                chosen = _greedy(model, int(rest[0]), begun, new)
                exact = exact or chosen
                cost.greedy.append(next((n for n in range(new) if chosen[n] != exact[n]), new))
    return found


def _nats(model: LanguageModel, ids: Tensor, state: ModelState) -> float:
    features, _ = model.hidden(ids[None, :-1], state)
    logs = model.logits(features[0]).double().log_softmax(-1)
    return float(-logs.gather(1, ids[1:, None]).mean())


def _greedy(model: LanguageModel, token: int, state: ModelState, count: int) -> list[int]:
    chosen = []
    for _ in range(count):
        features, after = model.hidden(torch.tensor([[token]]), state)
        assert after is not None
        token, state = int(model.logits(features[0, -1]).argmax()), after
        chosen.append(token)
    return chosen
