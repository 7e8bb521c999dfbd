"""What a GPU is: kernels, benchmarks, doctor and rows ask here. No torch is imported before a question."""

import functools
from dataclasses import dataclass
from typing import Any


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
