"""What travels together through the HGRN2 core; torch.library wants it one by one, in this order."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype


class Inputs(NamedTuple):
    """The tensors of a call; see `hgrn2.ops.hgru2`."""

    q: Tensor
    f: Tensor
    i: Tensor
    lower_bound: Tensor | None = None
    state: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @property
    def work(self) -> torch.dtype:
        """In which plain PyTorch and C++ compute."""
        return work_dtype(self.i.dtype)

    def states(self, heads: int) -> tuple[int, int, int, int]:
        """The shape of the final state, N, H, K, V."""
        sequences = self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1
        return sequences, heads, self.q.shape[2] // heads, self.i.shape[2] // heads


class ScanOptions(NamedTuple):
    """See `hgrn2.ops.hgru2`; activations by their canonical names."""

    heads: int
    reverse: bool
    input_activation: str
    output_activation: str
    scale: float

    def shared(self) -> dict[str, Any]:
        """All that is alike for every head and direction, by name."""
        names = ("input_activation", "output_activation", "scale")
        return dict(zip(names, self[2:], strict=True))
