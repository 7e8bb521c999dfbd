"""The baselines, from the transformers library, each fitted to the number of parameters of hgrn2; random weights."""

import copy
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hgrn2.bench.bench_model import BenchModel, Setup, full_loss
from hgrn2.bench.settings import Size
from hgrn2.errors import UserError

POSITIONS = 1 << 20  # more than any measured length; Llama's rotary positions cost no memory
MAMBA_STATE, MAMBA_EXPAND, MAMBA_CONV = (
    16,
    2,
    4,
)  # the defaults of MambaConfig, named because `mamba_layers` counts them


def transformers() -> Any:
    """The library, told to keep its advice to itself: that a fast path is missing on a CPU is known."""
    try:
        import transformers as library
    except ImportError:
        raise UserError(
            "the baselines need the transformers library: pip install 'hgrn2[bench]', or choose --models hgrn2"
        ) from None
    library.utils.logging.set_verbosity(logging.ERROR)
    return library


def llama(size: Size, layers: int | None = None, setup: Setup | None = None) -> BenchModel:
    """Llama with PyTorch's SDPA; its cache grows by concatenation, which is what `generate` does by default."""
    return _llama(size, layers, setup or Setup(), static=False)


def llama_static(size: Size, layers: int | None = None, setup: Setup | None = None) -> BenchModel:
    """The same with a cache allocated for the whole text beforehand: quicker at long contexts."""
    return _llama(size, layers, setup or Setup(), static=True)


def _made(kind: Any, config: Any, setup: Setup) -> Any:
    """The library's model with random weights, on the device and in the dtype of the measurement."""
    with setup.device:
        model = kind(config).to(setup.dtype)
    if setup.recompute == "block":
        recompute_blocks(model)
    return model


def recompute_blocks(model: Any) -> None:
    """Keep only the inputs of a transformers model's blocks; the method was renamed within version 5."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _llama(size: Size, layers: int | None, setup: Setup, *, static: bool) -> BenchModel:
    library = transformers()
    config = library.LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.width,
        num_hidden_layers=layers or size.layers,
        num_attention_heads=size.width // size.head_size,
        intermediate_size=llama_glu_width(size),
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = _made(library.LlamaForCausalLM, config, setup)

    def logits(tokens: Tensor) -> Tensor:
        return model(input_ids=tokens, use_cache=False).logits

    def flops(length: int) -> float:
        """Twice each matrix weight, and for the causal half of the scores two products of D per token before it."""
        weights = sum(p.numel() for p in model.parameters() if p.dim() == 2) - size.vocab_size * size.width
        return 3.0 * (2 * weights + config.num_hidden_layers * 2 * length * size.width)

    def prefill(prompt: Tensor, following: int) -> tuple[Tensor, Any]:
        cache = library.StaticCache(config=config, max_cache_len=prompt.shape[1] + following) if static else None
        out = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values

    def step(token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        return out.logits[:, -1], out.past_key_values

    return BenchModel(
        name="llama-hf-static" if static else "llama-hf",
        backend="torch",
        model=model,
        logits=logits,
        loss=full_loss(logits),
        prefill=prefill,
        step=step,
        fork=copy.deepcopy,
        state_bytes=cache_bytes,
        blocks=tuple(model.model.layers),
        flops=flops,
    )


def llama_glu_width(size: Size) -> int:
    """The hidden width, a multiple of 8, at which Llama comes closest to hgrn2's parameters: 2 V D + D for embedding,
    head and last norm, and 4 D² + 3 D m + 2 D per layer."""
    width, shared = size.width, (2 * size.vocab_size + 1) * size.width
    block = (size.parameters - shared) / size.layers - (4 * width + 2) * width
    return max(8, 8 * round(block / (3 * width) / 8))


def mamba(size: Size, layers: int | None = None, setup: Setup | None = None) -> BenchModel:
    """Mamba on the library's plain PyTorch path: a Python loop over the tokens, the only one that it has on a CPU."""
    library = transformers()
    config = library.MambaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.width,
        num_hidden_layers=layers or mamba_layers(size),
        state_size=MAMBA_STATE,
        expand=MAMBA_EXPAND,
        conv_kernel=MAMBA_CONV,
        tie_word_embeddings=False,
    )
    model = _made(library.MambaForCausalLM, config, setup or Setup())

    def logits(tokens: Tensor) -> Tensor:
        return model(input_ids=tokens, use_cache=False).logits

    def prefill(prompt: Tensor, following: int) -> tuple[Tensor, Any]:
        out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.cache_params

    def step(token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = model(input_ids=token, cache_params=cache, use_cache=True)
        return out.logits[:, -1], out.cache_params

    return BenchModel(
        name="mamba-hf",
        backend="torch",
        model=model,
        logits=logits,
        loss=full_loss(logits),
        prefill=prefill,
        step=step,
        fork=copy.deepcopy,
        state_bytes=cache_bytes,
        blocks=tuple(model.backbone.layers),
    )


def mamba_layers(size: Size) -> int:
    """The number of layers at which Mamba comes closest to hgrn2's parameters.

    With E = 2 D channels, a state of N and a time step of rank R = D / 16, a layer holds D (norm) + 2 D E (in)
    + 5 E (convolution of 4 and its bias) + E (R + 2 N) (Δ, B, C) + E R + E (Δ again) + E N (A) + E (D) + E D (out).
    """
    width = size.width
    inner, rank = MAMBA_EXPAND * width, math.ceil(width / 16)
    conv = inner * (MAMBA_CONV + 1)
    block = width + 3 * width * inner + conv + inner * (rank + 2 * MAMBA_STATE) + inner * (rank + MAMBA_STATE + 2)
    shared = (2 * size.vocab_size + 1) * width
    return max(1, round((size.parameters - shared) / block))


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache of the library, whatever its layers are called."""
    return sum(x.numel() * x.element_size() for x in _tensors(cache.layers))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif type(value).__module__.startswith(("transformers.cache_utils", "fla.models.cache_utils")):
        yield from _tensors(vars(value))
