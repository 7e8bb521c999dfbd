"""What a GPU is and can do: kernels, the trainer, benchmarks, doctor and rows ask here. No torch is imported before a
question."""

import functools
import time
from dataclasses import dataclass
from typing import Any

SIDE = {"cuda": 8192, "cpu": 1024}
ROUNDS = 5


@dataclass(frozen=True)
class GPU:
    """What is asked of a CUDA device (or one that PyTorch shows as such)."""

    name: str
    memory: int
    """Bytes."""
    shared_memory: int
    """Bytes that one block of threads may use; 0 where PyTorch does not say."""
    processors: int
    """Streaming multiprocessors."""
    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""


def gpu(device: Any) -> GPU | None:
    """The GPU behind a `torch.device` or its name, the current one where there is no number; None for other devices."""
    import torch

    place = torch.device(device)
    if place.type != "cuda":
        return None
    return _gpu(torch.cuda.current_device() if place.index is None else place.index)


@functools.cache
def _gpu(index: int) -> GPU:
    import torch

    found = torch.cuda.get_device_properties(index)
    return GPU(
        name=found.name,
        memory=found.total_memory,
        shared_memory=getattr(found, "shared_memory_per_block_optin", 0),
        processors=found.multi_processor_count,
        capability=(found.major, found.minor),
    )


def processors(device: Any) -> int:
    """Streaming multiprocessors; 1 where there is no GPU, where more programs at a time only take longer."""
    found = gpu(device)
    return 1 if found is None else found.processors


def architecture(device: Any) -> str:
    """ "sm90" for a GPU of compute capability 9.0; "cpu" where there is no GPU: kernels are interpreted or emulated."""
    found = gpu(device)
    return "cpu" if found is None else f"sm{found.capability[0]}{found.capability[1]}"


def matrix_rate(device: Any, dtype: Any) -> float:
    """Floating-point operations per second of a large square matrix product, the median of some; random numbers, as
    zeros can be quicker. Generators of a program stay as they are.

    Args:
        device: a `torch.device`, or its name.
        dtype: of the factors, a `torch.dtype`.
    """
    import torch

    place = torch.device(device)
    side, wait = SIDE.get(place.type, 1024), torch.cuda.synchronize if place.type == "cuda" else lambda _: None
    a, b = torch.randn(2, side, side, device=place, generator=torch.Generator(place).manual_seed(0)).to(dtype)
    out, calls = torch.empty_like(a), 10 if place.type == "cuda" else 1
    rates = []
    for _ in range(ROUNDS + 1):  # the first does not count
        wait(place)
        began = time.perf_counter()
        for _ in range(calls):
            torch.mm(a, b, out=out)
        wait(place)
        rates.append(2 * side**3 * calls / (time.perf_counter() - began))
    return sorted(rates[1:])[ROUNDS // 2]
