"""Python side of the C++ kernels: pointers and shapes through ctypes, nothing else."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hgrn2.ops.native.build import library
from hgrn2.ops.options import ScanOptions

_NAMES = {torch.float32: "f32", torch.float64: "f64", torch.complex64: "c64", torch.complex128: "c128"}
_ACTIVATIONS = {"none": 0, "silu": 1, "sigmoid": 2}


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("docs", "heads", "K", "V")),
        *((name, ctypes.c_int64) for name in ("mode", "reverse", "input_activation", "output_activation")),
        *((name, ctypes.c_int64) for name in ("stride_q", "stride_f", "stride_k", "stride_v")),
        ("scale", ctypes.c_double),
    ]


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("docs", "channels", "reverse", "width")]


class _RowShape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "width", "activation", "parts")]


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(_pointer(x) for x in tensors))


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    kernels, why = library()
    if kernels is None:
        raise RuntimeError(f"the native backend is not available: {why}")
    function = getattr(kernels, f"{name}_{_NAMES[dtype]}")
    function.restype = None
    return function


def _run(name: str, dtype: torch.dtype, *arguments: object) -> None:
    _kernel(name, dtype)(*arguments)


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[tokens, channels] in the given dtype whose rows are contiguous and evenly spaced; a copy only where needed."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 or (x.shape[-1] == 1 and x.stride(0) >= 1) else x.contiguous()


def problem(docs: int, inputs: Sequence[Tensor | None], options: ScanOptions) -> _Problem:
    """Shapes and options of one call; inputs q, f, k, v are [tokens, channels], rows contiguous; raw without a k."""
    q, f, k, v = inputs[:4]
    assert q is not None
    assert f is not None
    assert v is not None
    heads, strides = options.heads, (0 if x is None else x.stride(0) for x in (q, f, k, v))
    names = (options.input_activation, options.output_activation)
    sizes = (docs, heads, q.shape[1] // heads, v.shape[1] // heads)
    flags = (int(k is None), int(options.reverse), *(_ACTIVATIONS[name] for name in names))
    return _Problem(*sizes, *flags, *strides, options.scale)


def outer_forward(p: _Problem, offsets: Tensor, inputs: Sequence[Tensor | None], o: Tensor, final: Tensor) -> None:
    """inputs: q, f, k, v, bound, state (None where absent); fills o [tokens, H*V] and final [N,H,K,V]."""
    _run("outer_forward", o.dtype, ctypes.byref(p), ctypes.c_void_p(offsets.data_ptr()), _pointers(inputs),
         ctypes.c_void_p(o.data_ptr()), ctypes.c_void_p(final.data_ptr()))  # fmt: skip


def outer_backward(
    p: _Problem, offsets: Tensor, inputs: Sequence[Tensor | None], grad_o: Tensor, grad_state: Tensor | None,
    outputs: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """outputs: gradients of q, f, k, v, bound (partial sums per document), state; contiguous, None where not wanted."""
    _run("outer_backward", grad_o.dtype, ctypes.byref(p), ctypes.c_void_p(offsets.data_ptr()), _pointers(inputs),
         ctypes.c_void_p(grad_o.data_ptr()), ctypes.c_void_p(_pointer(grad_state)), _pointers(outputs))  # fmt: skip


def elementwise(name: str, dtype: torch.dtype, offsets: Tensor, channels: int, tensors: Sequence[Tensor | None], *,
                reverse: bool = False, width: int = 0) -> None:  # fmt: skip
    """Call scan_forward, scan_backward, conv_forward or conv_backward on contiguous tensors."""
    shape = _Shape(offsets.numel() - 1, channels, int(reverse), width)
    _run(name, dtype, ctypes.byref(shape), ctypes.c_void_p(offsets.data_ptr()),
         *(ctypes.c_void_p(_pointer(x)) for x in tensors))  # fmt: skip


def rowwise(
    name: str, like: Tensor, tensors: Sequence[Tensor | None], *, eps: float | None = None, activation: str = "none",
    parts: int = 1,
) -> None:  # fmt: skip
    """Call rms_forward, rms_backward, gated_forward or gated_backward on contiguous tensors; `like` has the rows of the
    result."""
    width = like.shape[-1]
    shape = _RowShape(like.numel() // width, width, _ACTIVATIONS[activation], parts)
    scalars = () if eps is None else (ctypes.c_double(eps),)
    _run(name, like.dtype, ctypes.byref(shape), *scalars, *(ctypes.c_void_p(_pointer(x)) for x in tensors))
