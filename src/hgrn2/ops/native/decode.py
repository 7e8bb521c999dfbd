"""A whole one-token step of a language model as one call of C++: descriptions of its tensors, held as pointers."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hgrn2.ops.native.build import library

ACTIVATIONS = {"none": 0, "silu": 1, "sigmoid": 2}
LARGEST_HEAD = 1024
"""Channels: the output of a head stands on the C++ stack."""


class MatrixParts(NamedTuple):
    """A matrix [rows, columns]: float32, or int8 with a bfloat16 scale for each row."""

    weight: Tensor
    scale: Tensor | None
    rows: int
    """Those that count; stored ones may be more."""


class NormParts(NamedTuple):
    """A norm over the width, or over each of so many equal groups of it; `centred`: LayerNorm."""

    weight: Tensor | None
    bias: Tensor | None
    centred: bool
    groups: int
    eps: float


class LayerParts(NamedTuple):
    """Everything of one layer, in the order of the C++."""

    before: NormParts
    inner: NormParts
    middle: NormParts
    matrices: tuple[MatrixParts, MatrixParts, MatrixParts, MatrixParts]
    """In, out, up, down."""
    taps: Tensor | None
    lower_bound: Tensor | None
    state: Tensor
    past: Tensor | None


class _Matrix(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale")] + [
        (name, ctypes.c_int64) for name in ("rows", "columns")
    ]


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_int64) for name in ("kind", "groups")),
        ("eps", ctypes.c_double),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("before", "inner", "middle")),
        *((name, _Matrix) for name in ("in_", "out", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("taps", "lower_bound", "state", "past")),
    ]


class Sizes(NamedTuple):
    """What all layers share."""

    width: int
    heads: int
    hidden: int
    conv_width: int
    input_activation: str
    output_activation: str
    glu_activation: str
    scale: float
    embedding_scale: float


class _Net(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "width", "heads", "hidden", "conv_width")),
        *((name, ctypes.c_int64) for name in ("input_activation", "output_activation", "glu_activation")),
        *((name, ctypes.c_double) for name in ("scale", "embedding_scale")),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("last", _Norm),
    ]


class TokenStep:
    """Calls the C++ with a token id; fills logits and updates the states, whose memory it was given.

    The tensors are kept alive here and must stay where they are.
    """

    def __init__(
        self, sizes: Sizes, layers: Sequence[LayerParts], embedding: MatrixParts, head: MatrixParts, last: NormParts
    ) -> None:
        kernels, why = library()
        if kernels is None:
            raise RuntimeError(f"the native backend is not available: {why}")
        self._call = kernels.decode_token_f32
        self._call.restype = None
        self._kept: list[Tensor] = []
        self._layers = (_Layer * len(layers))(*(self._layer(one) for one in layers))
        kinds = (ACTIVATIONS[name] for name in (sizes[4], sizes[5], sizes[6]))
        self._net = _Net(
            len(layers), *sizes[:4], *kinds, sizes.scale, sizes.embedding_scale, self._matrix(embedding),
            self._matrix(head), self._norm(last),
        )  # fmt: skip
        self.logits = torch.zeros(1, head.rows)

    def __call__(self, token: int) -> Tensor:
        """Logits [1,V], overwritten by the next call."""
        self._call(
            ctypes.byref(self._net), self._layers, ctypes.c_int64(token), ctypes.c_void_p(self.logits.data_ptr())
        )
        return self.logits

    def _pointer(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        if not x.is_contiguous():
            raise ValueError("a tensor is not contiguous")
        self._kept.append(x)
        return x.data_ptr()

    def _matrix(self, m: MatrixParts) -> _Matrix:
        return _Matrix(self._pointer(m.weight), self._pointer(m.scale), m.rows, m.weight.shape[1])

    def _norm(self, n: NormParts) -> _Norm:
        return _Norm(self._pointer(n.weight), self._pointer(n.bias), int(n.centred), n.groups, n.eps)

    def _layer(self, one: LayerParts) -> _Layer:
        norms = (self._norm(n) for n in (one.before, one.inner, one.middle))
        tensors = (one.taps, one.lower_bound, one.state, one.past)
        return _Layer(*norms, *(self._matrix(m) for m in one.matrices), *(self._pointer(x) for x in tensors))
