"""Language models under one description, so that every measurement treats them alike; here is our own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.bench.settings import Size
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.ops import backend as backends

SEGMENT = 1024
"""Tokens of a prompt that hgrn2 reads at a time, as `hgrn2 generate` does."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A language model with random weights, and how it is called."""

    name: str
    backend: str
    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    """Training: tokens [B,T] -> logits [B,T,V]."""
    prefill: Callable[[Tensor, int], tuple[Tensor, Any]]
    """(prompt [1,T], number of tokens that will follow) -> (logits of the last position [1,V], state)."""
    step: Callable[[Tensor, Any], tuple[Tensor, Any]]
    """(token [1,1], state) -> (logits [1,V], state)."""
    fork: Callable[[Any], Any]
    """A state to go on from that leaves the given one as it was."""
    state_bytes: Callable[[Any], int]

    @property
    def parameters(self) -> int:
        """Trained numbers, each counted once."""
        return sum(p.numel() for p in self.model.parameters())


def build(name: str, size: Size, seed: int, *, layers: int | None = None) -> Subject:
    """A subject by name, its weights drawn from `seed`; `layers` in place of the number that makes the sizes equal."""
    from hgrn2.bench import baselines

    makers = {
        "hgrn2": hgrn2,
        "llama-hf": baselines.llama,
        "llama-hf-static": baselines.llama_static,
        "mamba-hf": baselines.mamba,
    }
    torch.manual_seed(seed)
    subject = makers[name](size, layers)
    if layers is None:
        size.check(name, subject.parameters)
    return subject


def hgrn2(size: Size, layers: int | None = None) -> Subject:
    """HGRN2; its state is a value, so going on from one changes nothing."""
    model = LanguageModel(replace(size.config(), layers=layers or size.layers))

    def logits(tokens: Tensor) -> Tensor:
        return model(tokens, output_state=False)[0]

    def prefill(prompt: Tensor, following: int) -> tuple[Tensor, ModelState]:
        features, state = torch.empty(0), model.zeros(1)
        for part in prompt.split(SEGMENT, 1):
            features, state = model.hidden(part, state)
            assert state is not None  # asked for, as `output_state` is by default
        return model.logits(features[:, -1]), state

    def step(token: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        out, new = model(token, state)
        assert new is not None
        return out[:, -1], new

    return Subject(
        name="hgrn2",
        backend=backends.choose(torch.device("cpu")).backend,
        model=model,
        logits=logits,
        prefill=prefill,
        step=step,
        fork=lambda state: state,
        state_bytes=lambda state: state.nbytes,
    )
