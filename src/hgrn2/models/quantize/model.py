"""Language models with weights in eight or four bits, for reading and generating: quantised when they are loaded.

    projections in and out, GLU    int8 or int4
    embedding, head                int8, one table where they are tied
    all else                       as it was: norms, lower bounds, convolutions, biases, phases; states and gates are
    float32

Files on disk stay as they are, and a quantised model is not saved: it is made from them in a moment.
"""

import hashlib
from typing import cast

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.grouped import GroupedLinear
from hgrn2.models.language import LanguageModel
from hgrn2.models.quantize.config import QuantizeConfig
from hgrn2.models.quantize.weights import Int4, Int8
from hgrn2.models.saved import add_tensors, check_unchanged

FINGERPRINT = "quantized"
DTYPES = (torch.float32, torch.bfloat16)


class QuantizedLinear(nn.Module):
    """x [...,K] -> x Wᵀ + b [...,N] in x's dtype, W being quantised."""

    def __init__(self, store: Int8 | Int4, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.store, self.dtype = store, dtype
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[N,K], dequantised anew at each use."""
        return self.store.dense(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.store.product(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class QuantizedEmbedding(nn.Module):
    """Ids [...] -> rows of a quantised table [...,D]."""

    def __init__(self, store: Int8, dtype: torch.dtype) -> None:
        super().__init__()
        self.store, self.dtype = store, dtype

    @property
    def weight(self) -> Tensor:
        """[V,D], dequantised anew at each use."""
        return self.store.dense(self.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.store.take(tokens, self.dtype)


class QuantizedLanguageModel(LanguageModel):
    """A `LanguageModel` to call, made by `quantize`; it stays on its device, in its dtype and in evaluation mode.

    `state_dict()` holds what is not quantised and a digest of the rest, so that models with other weights or of another
    kind have another `model_hash`, wherever they are packed.
    """

    quantization: QuantizeConfig
    fallbacks: dict[str, str]
    """Matrices that are not held or not computed as asked, and why."""

    def logits(self, features: Tensor) -> Tensor:
        """Features [...,D] -> logits [...,V]."""
        if self.head is not None:
            return self.head(features)
        store = cast(QuantizedEmbedding, self.embedding).store
        return store.product(features.reshape(-1, features.shape[-1])).unflatten(0, features.shape[:-1])

    def train(self, mode: bool = True) -> "QuantizedLanguageModel":
        """Refused for `mode=True`: there is nothing to train."""
        if mode:
            raise UserError("a quantised model cannot be trained; train the model that it was made from")
        super().train(False)
        return self

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        raise UserError("a quantised model stays where it was made: load the model with that device or dtype instead")


def quantize(model: LanguageModel, config: QuantizeConfig | None = None) -> QuantizedLanguageModel:
    """The model with quantised matrices, on the same device. The given one is used up: its parts move over one by one,
    so that memory never holds both.

    A matrix that int4 cannot hold is int8; one that no kernel multiplies by is dequantised at every call. Either is
    told in `fallbacks`.

    Raises:
        UserError: for a model that is quantised already, or in another precision than float32 and bfloat16.
    """
    config = config or QuantizeConfig()
    dtype = model.embedding.weight.dtype
    if type(model) is not LanguageModel:
        raise UserError(f"a {type(model).__name__} cannot be quantised, only a plain language model")
    if dtype not in DTYPES:
        raise UserError(f"a model in {str(dtype).removeprefix('torch.')} cannot be quantised; load it in float32")
    check_unchanged(model, "quantize")
    model.eval().requires_grad_(False)
    quantized = QuantizedLanguageModel.__new__(QuantizedLanguageModel)
    quantized.__dict__ = dict(model.__dict__)
    quantized.quantization, quantized.fallbacks = config, {}
    digest = hashlib.sha256(repr(config).encode())
    with torch.no_grad():
        _replace_all(quantized, config, dtype, digest)
    fingerprint = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
    quantized.register_buffer(FINGERPRINT, fingerprint)
    return quantized


def _replace_all(model: QuantizedLanguageModel, config: QuantizeConfig, dtype: torch.dtype, digest: object) -> None:
    names = [name for name, module in model.named_modules()
             if isinstance(module, nn.Linear | nn.Embedding) and not isinstance(module, GroupedLinear)]  # fmt: skip
    for name in names:
        old = cast("nn.Linear | nn.Embedding", model.get_submodule(name))
        kind = "int8" if name in ("embedding", "head") else config.kind
        store, asked = _store(old.weight, kind, config.group)
        looked_up = isinstance(old, nn.Embedding) and model.head is not None  # never multiplied by
        slow = "dequantised at every call" if store.why and not looked_up else ""
        if asked or slow:
            held = f"int8{', ' * bool(slow)}" if asked else ""
            model.fallbacks[name] = f"{held}{slow}: {asked or store.why}"
        add_tensors(digest, {f"{name}.{n}": tensor for n, tensor in enumerate(store.content())})
        if isinstance(old, nn.Embedding):
            new: nn.Module = QuantizedEmbedding(cast(Int8, store), dtype)
        else:
            new = QuantizedLinear(store, old.bias, dtype)
        model.set_submodule(name, new.eval())


def _store(weight: Tensor, kind: str, group: int) -> tuple[Int8 | Int4, str]:
    """The matrix as asked, or in int8 with the reason why not."""
    if kind == "int4":
        store = Int4(weight, group)
        if not store.why:
            return store, ""
        return Int8(weight), store.why
    return Int8(weight), ""


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def fallback_lines(model: QuantizedLanguageModel) -> list[str]:
    """For people: one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in model.fallbacks.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{_some(names)}: {reason}" for reason, names in by_reason.items()]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
