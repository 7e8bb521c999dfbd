"""HGRN2 of flash-linear-attention as a whole model; the library is imported when it is asked for, and needs a GPU."""

import copy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.bench.baselines import cache_bytes, recompute_blocks, transformers
from hgrn2.bench.bench_model import BenchModel, Setup
from hgrn2.bench.settings import Size
from hgrn2.errors import UserError
from hgrn2.models.count import flops_per_token

SHORT = 64
"""Tokens up to which its layer takes the recurrent kernel, which needs no long tuning; prompts are read so."""


def required() -> Any:
    """The module with its models."""
    transformers()
    try:
        return import_module("fla.models")
    except ImportError as missing:
        raise UserError(
            f"fla needs flash-linear-attention ({missing}): "
            "pip install --no-deps flash-linear-attention==0.6.0 fla-core==0.6.0 einops"
        ) from None


def fla(size: Size, layers: int | None = None, setup: Setup | None = None) -> BenchModel:
    """Its HGRN2 of the very same shape, with the options that its configuration has by default."""
    found, setup = required(), setup or Setup()
    config = found.HGRN2Config(
        hidden_size=size.width,
        num_hidden_layers=layers or size.layers,
        expand_ratio=size.head_size,
        intermediate_size=size.glu_width,
        vocab_size=size.vocab_size,
        tie_word_embeddings=False,
    )
    with setup.device:
        model: nn.Module = found.HGRN2ForCausalLM(config).to(setup.dtype)
    call: Any = model
    if setup.recompute == "block":
        recompute_blocks(call)

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        # Its own fused loss, which moves the labels by one itself: the last target has no place there.
        labels = torch.cat((tokens[:, :1], targets[:, :-1]), 1)
        return call(input_ids=tokens, labels=labels, use_cache=False).loss

    def prefill(prompt: Tensor, following: int) -> tuple[Tensor, Any]:
        logits, cache = torch.empty(0), None
        for part in prompt.split(SHORT, 1):
            out = call(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = out.logits[:, -1], out.past_key_values
        return logits, cache

    def step(token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = call(input_ids=token, past_key_values=cache, use_cache=True)
        return out.logits[:, -1], out.past_key_values

    return BenchModel(
        name="fla",
        backend="fla",
        model=model,
        logits=lambda tokens: call(input_ids=tokens, use_cache=False).logits,
        loss=loss,
        prefill=prefill,
        step=step,
        fork=copy.deepcopy,
        state_bytes=cache_bytes,
        blocks=tuple(call.model.layers),
        flops=lambda length: flops_per_token(size.config(), training=True),
    )
