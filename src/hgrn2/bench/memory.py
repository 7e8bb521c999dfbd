"""How much memory a piece of work needs at its peak: of the process, as the operating system sees it (Linux; elsewhere
unknown), or of the GPU, as PyTorch's allocator counts it."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5), clear_refs: the peak resident set begins again at the current one


@dataclass
class Peak:
    """Filled when the block ends."""

    extra_bytes: int | None = None
    """Most resident memory inside the block, less what was resident before it; None where it cannot be found out."""


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the block: everything counts that it touches, scratch of kernels and kept results included.

    Freed memory that the allocator still holds is handed back first; otherwise the block could use it unseen.
    """
    peak, before = Peak(), None
    gc.collect()
    _hand_back()
    with suppress(OSError, KeyError, ValueError):  # no such files: not Linux, or a container that hides them
        _CLEAR.write_text(_RESET_PEAK)
        before = _status("VmRSS")
    yield peak
    if before is not None:
        peak.extra_bytes = max(0, _status("VmHWM") - before)


def beyond_results(call: Callable[[], Sequence[Tensor]]) -> int:
    """Bytes of GPU memory that a call needs at its peak beyond what it is given and what it returns.

    `call` returns outputs and gradients, and whatever it reads exists already; the rest is scratch and what the
    forward keeps for the backward.
    """
    call()  # lookup tables and workspaces that stay for good are no part of a call
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return max(0, peak - before - sum(x.untyped_storage().nbytes() for x in results))


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise KeyError(name)


def _hand_back() -> None:
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # not glibc: freed memory stays, and the peak may come out too small
            ctypes.CDLL(None).malloc_trim(0)
