"""The one-token step of an HGRN2 language model as one call of C++ (ops/native/decode.cpp), where it serves.

On a CPU a step in PyTorch is some 300 operators of a few microseconds around 40 small products. It serves one sequence,
float32 states, and weights that are float32 or int8: activations stay float32 beside int8 weights, which PyTorch's
kernel rounds to bfloat16. Before it is used for a model its logits are compared with those of the model itself.
"""

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from hgrn2.layers.block import Block
from hgrn2.layers.glu import GLU
from hgrn2.layers.hgru2 import HGRU2
from hgrn2.layers.norm import Norm
from hgrn2.layers.state import LayerState, ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.models.plain import is_product, untouched
from hgrn2.models.quantize.model import QuantizedEmbedding, QuantizedLanguageModel, QuantizedLinear
from hgrn2.models.quantize.weights import Int8
from hgrn2.ops.native import decode
from hgrn2.ops.native.build import library
from hgrn2.ops.native.decode import LayerParts, MatrixParts, NormParts, Sizes, TokenStep

NEAR = {False: 1e-3, True: 0.05}
"""How far the first logits may be from the model's own, relative to the largest; with int8 weights those are rounded
to bfloat16 at every product."""


_CHECKED: "WeakSet[LanguageModel]" = WeakSet()
"""Models whose steps were compared."""


class _Unserved(Exception):
    """Why the C++ cannot take a model's steps."""


def whole_step(model: LanguageModel, state: ModelState) -> tuple[TokenStep | None, str]:
    """The step over this state of one sequence, which it will update in place, and why; None where it does not serve.

    Weights are read where they lie: they must stay there, and lower bounds are those of this moment.
    """
    try:
        step = _made(model, state)
        if model not in _CHECKED:
            _check(model, step, state)
            _CHECKED.add(model)
    except _Unserved as reason:
        return None, str(reason)
    return step, "each token is one call of C++"


def _made(model: LanguageModel, state: ModelState) -> TokenStep:
    config = model.config
    kernels, why = library()
    _need(kernels is not None, why)
    _need(type(model) in (LanguageModel, QuantizedLanguageModel), f"the model is a {type(model).__name__}")
    _need(model.device.type == "cpu", f"the model is on {model.device.type}")
    _need(model.dtype == torch.float32, f"the model is in {str(model.dtype).removeprefix('torch.')}")
    _need(all(mixer.kind == "hgru2" for mixer in config.mixers), f"its mixers are {config.named_kinds}")
    mixer = config.mixer
    _need(not mixer.bias and not config.glu_bias, "it has biases")
    _need(mixer.head_size <= decode.LARGEST_HEAD, f"heads of {mixer.head_size} channels are too large")
    _need(config.glu_activation in decode.ACTIVATIONS, f"its gated units have {config.glu_activation}")
    bounds = model.backbone.layer_lower_bounds()
    layers = [
        _layer(block, None if bound is None else bound.detach().float().contiguous(), own)
        for block, bound, own in zip(model.backbone.blocks, bounds, state.layers, strict=True)
    ]
    first = model.backbone.blocks[0]
    sizes = Sizes(
        config.width, config.width // mixer.head_size, config.glu_width, mixer.conv_width, mixer.input_activation,
        mixer.output_activation, config.glu_activation, first.mixer.scale, model.embedding_scale,  # pyright: ignore
    )  # fmt: skip
    embedding = _matrix(model.embedding)
    head = embedding if model.head is None else _matrix(model.head)
    return TokenStep(sizes, layers, embedding, head, _norm(model.backbone.norm))


def _layer(block: nn.Module, lower_bound: Tensor | None, state: Any) -> LayerParts:
    _need(type(block) is Block and untouched(block), "a block was changed")
    assert isinstance(block, Block)
    mixer, glu = block.mixer, block.glu
    _need(type(mixer) is HGRU2 and untouched(mixer) and mixer.gate is None, "a mixer was changed")
    _need(type(glu) is GLU and untouched(glu), "a gated unit was changed")
    assert glu is not None
    plain = isinstance(state, LayerState) and state.recurrent.dtype == torch.float32 and len(state.recurrent) == 1
    _need(plain, "its states are not float32 of one sequence")
    conv = None if mixer.conv is None else mixer.conv.detach()
    matrices = tuple(_matrix(one) for one in (mixer.in_proj, mixer.out_proj, glu.in_proj, glu.out_proj))
    norms = (_norm(one) for one in (block.mixer_norm, mixer.norm, block.glu_norm))
    return LayerParts(*norms, matrices, conv, lower_bound, state.recurrent, state.conv)  # pyright: ignore


def _matrix(module: nn.Module) -> MatrixParts:
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        store = module.store
        _need(isinstance(store, Int8) and untouched(module), "its weights have four bits")
        _need(getattr(module, "bias", None) is None, "it has biases")
        assert isinstance(store, Int8)
        return MatrixParts(store.codes, store.scale, store.rows)
    _need(is_product(module, torch.empty(0)), f"its {type(module).__name__} was changed")
    weight = module.weight.detach()  # pyright: ignore
    return MatrixParts(weight, None, weight.shape[0])  # pyright: ignore


def _norm(module: nn.Module | None) -> NormParts:
    _need(type(module) is Norm and untouched(module) and module.kind != "batch", "a norm was changed")
    assert isinstance(module, Norm)
    weight, bias = (None if x is None else x.detach() for x in (module.weight, module.bias))
    groups = module.heads if module.kind == "head_rms" else 1
    return NormParts(weight, bias, module.kind == "layer", groups, module.eps)


def _check(model: LanguageModel, step: TokenStep, state: ModelState) -> None:
    """Two tokens from an empty state, as the model itself computes them; leaves the state empty."""
    empty = model.zeros(1)
    with reading(model):
        state.overwrite(empty)
        for token in (0, model.config.vocab_size - 1):
            wanted, empty = model(torch.tensor([[token]]), empty, inplace=True)
            found = step(token)
            far = float((found - wanted[:, 0]).abs().max() / wanted.abs().max().clamp_min(1e-6))
            near = far <= NEAR[isinstance(model, QuantizedLanguageModel)]
            _need(near, f"the C++ is off by {far:.2g} of the largest logit here")
        state.overwrite(model.zeros(1))


def _need(condition: bool, why: str) -> None:
    if not condition:
        raise _Unserved(why)
