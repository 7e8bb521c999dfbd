"""Fresh memory full of NaN, so that a kernel that forgets to write a value, or reads one too many, is seen."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, every tensor made without values (empty, empty_like, new_empty) starts as NaN, or the largest integer.

    PyTorch's own switch for deterministic runs does it, so it reaches allocations inside custom operators too. Its
    complaints about operations that have no deterministic twin on a GPU are beside the point here.
    """
    mode, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*determinis.*", UserWarning)
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
