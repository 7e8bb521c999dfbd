"""What makes training on a CPU faster: settings of the process, and what its processor multiplies natively."""

import ctypes
import sys

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep large freed blocks instead of handing them back to the system.

    A training step allocates and frees the same megabytes over and over; each hand-back costs page faults at the next
    use. docs/log.md has what it was seen to save.
    Returns whether it took effect; other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(name, value) == 1 for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 28))
    )


def product_dtype(device: torch.device) -> torch.dtype:
    """The dtype for matrix products that need no more than bfloat16's precision: bfloat16 on CUDA devices and on
    processors with matrix units for it (AMX), float32 elsewhere.

    Vector instructions for bfloat16 (avx512_bf16) are no reason: on a processor of their generation the products of a
    demo step ran at 148 GFLOP/s in bfloat16 and at 240 in float32 (docs/log.md).
    """
    matrix_units = device.type == "cpu" and has("amx_bf16")
    return torch.bfloat16 if device.type == "cuda" or matrix_units else torch.float32


def has(feature: str) -> bool:
    """Whether this processor has a feature that torch knows by this name, such as avx2, avx512_f, amx_bf16."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # older versions do not tell
    return bool(capabilities().get(feature, False))
