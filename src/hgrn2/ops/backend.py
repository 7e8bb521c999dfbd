"""The one place that chooses a backend, and can explain its choice.

Backends, in the order in which `auto` prefers them:
    native     C++ compiled for this machine's processor; CPU tensors
    chunked    plain PyTorch, any device, any dtype
    reference  the loop over tokens, differentiated by autograd; chosen only by name
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hgrn2.errors import UserError

NAMES = ("native", "chunked", "reference")


class Choice(NamedTuple):
    """A backend and the reason for it, as a sentence."""

    backend: str
    why: str


@torch.compiler.assume_constant_result  # torch.compile asks once instead of tracing the build of the kernels
def _native_support(device: torch.device) -> tuple[bool, str]:
    if device.type != "cpu":
        return False, f"native runs on the CPU, the tensors are on {device.type}"
    from hgrn2.ops.native.build import library

    kernels, why = library()
    return kernels is not None, why


def choose(device: torch.device, backend: str = "auto") -> Choice:
    """Resolve a request: a backend named that cannot serve is a `UserError`; `auto` falls back and says why."""
    if backend == "auto":
        able, why = _native_support(device)
        return Choice("native", why) if able else Choice("chunked", f"plain PyTorch on {device.type}; {why}")
    if backend not in NAMES:
        raise UserError(f"backend {backend!r} is unknown; choose auto, {', '.join(NAMES)}")
    if backend == "native":
        able, why = _native_support(device)
        if not able:
            raise UserError(f"backend native cannot serve this call: {why}")
        return Choice("native", why)
    return Choice(backend, "asked for by name")


def choose_step(x: Tensor, state: Tensor, backend: str = "auto") -> Choice:
    """Resolve a request for one token of `hgru2`; native keeps states in the working dtype of the input x only."""
    choice, wanted = choose(x.device, backend), work_dtype(x.dtype)
    if choice.backend != "native" or state.dtype == wanted:
        return choice
    why = f"native steps keep the state in {wanted}, this one is {state.dtype}"
    if backend == "native":
        raise UserError(f"backend native cannot serve this call: {why}")
    return Choice("chunked", f"plain PyTorch on {x.device.type}; {why}")


def check_floating(**tensors: Tensor | None) -> None:
    """Refuse integers and complex numbers."""
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise UserError(f"{name} must hold real floating-point numbers, not {x.dtype}")


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast leaves matrix products alone: states and sums keep the working dtype."""
    return torch.autocast(device.type, enabled=False)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """States, gates and sums: float64 stays float64, everything narrower works in float32 (complex likewise)."""
    if dtype.is_complex:
        return torch.complex128 if dtype == torch.complex128 else torch.complex64
    return torch.float64 if dtype == torch.float64 else torch.float32
