"""What travels together through the scans of matrix states; torch.library wants it one by one, in this order."""

from typing import NamedTuple

import torch
from torch import Tensor

from hgrn2.ops.backend import work_dtype


class Inputs(NamedTuple):
    """The tensors of the HGRN2 core; see `hgrn2.ops.hgru2`."""

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


class OuterInputs(NamedTuple):
    """The tensors of the general scan; see `hgrn2.ops.gated_outer_scan`."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_f: Tensor
    state: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @property
    def work(self) -> torch.dtype:
        """In which plain PyTorch and C++ compute."""
        return work_dtype(self.v.dtype)

    def states(self) -> tuple[int, int, int, int]:
        """The shape of the final state, N, H, K, V."""
        sequences = self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1
        return sequences, self.q.shape[2], self.q.shape[3], self.v.shape[3]


class OuterOptions(NamedTuple):
    """See `hgrn2.ops.gated_outer_scan`."""

    reverse: bool
    scale: float
