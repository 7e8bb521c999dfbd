"""What stands beside the server in the same run: the same model and as many tokens in this process, without HTTP."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator

TURNS = 3
"""Measured ones, after one that pays for what is made once."""
Prompts = Callable[[int], list[list[int]]]
"""Those of a turn, all of one length."""


def loop(generator: Generator, prompts: Prompts, tokens: int) -> list[float]:
    """Tokens/s of our own generate loop, one text at a time."""
    samples = []
    for turn in range(TURNS + 1):
        config = GenerationConfig(max_tokens=tokens, sampling=SamplingConfig(seed=turn), stop_at_eot=False)
        (prompt,) = prompts(turn)
        began = time.perf_counter()
        (made,) = generator.generate(prompt, config)
        samples += [len(made.ids) / (time.perf_counter() - began)] if turn else []
    return samples


def transformers_generate(generator: Generator, prompts: Prompts, tokens: int) -> list[float]:
    """Tokens/s of transformers' `generate`: one batch whose texts begin and end together.

    Raises:
        UserError: transformers is missing, or does not have this kind of model.
    """
    from hgrn2.models.hf import from_language_model

    model: Any = from_language_model(generator.model)
    samples = []
    for turn in range(TURNS + 1):
        ids = torch.tensor(prompts(turn))
        torch.manual_seed(turn)
        began = time.perf_counter()
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=tokens,
            min_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if made.shape[1] != ids.shape[1] + tokens:
            raise UserError("transformers' generate did not write as many tokens as were asked for")
        samples += [len(ids) * tokens / seconds] if turn else []
    return samples


def threaded(threads: int | None, measure: Callable[[], Sequence[float]]) -> Sequence[float]:
    """A measurement with as many threads as the server has."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)
