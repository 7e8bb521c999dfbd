"""Labelled examples as tensors on the run's device.

Where they fit (2 GiB), all examples of a split are copied to the device once, and a batch is gathered there: a small
model on a GPU takes steps of a few milliseconds, in which nothing can be padded row by row on a processor. Larger sets
stay memory-mapped and a batch at a time travels. Both give the same tensors.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hgrn2.data.class_batches import ClassPlan, collate, padded_width
from hgrn2.data.classes import Examples

RESIDENT_BYTES = 1 << 31


class Batch(NamedTuple):
    """Tensors of one batch."""

    inputs: Tensor
    """Ids [B,T] or [B,2,T] int64, numbers [B,T,C] float32, or images [B,H,W,C] uint8."""
    labels: Tensor
    """[B] int64."""
    padding_mask: Tensor | None
    """[B,T] or [B,2,T] bool, False on padding; None for images."""


class Loader:
    """Batches of `examples` by number, padded under `plan`; `resident` says whether they all lie on the device."""

    def __init__(self, examples: Examples, plan: ClassPlan, device: torch.device, *, limit: int | None = None) -> None:
        self.examples, self.plan, self.device = examples, plan, device
        limit = RESIDENT_BYTES if limit is None else limit
        self.resident = sum(array.nbytes for array in (examples.a, examples.b) if array is not None) <= limit
        self._arrays = {name: self._tensor(array) for name, array in vars(examples).items() if array is not None} if (
            self.resident) else {}  # fmt: skip

    def batch(self, indices: np.ndarray) -> Batch:
        """The named examples."""
        if not self.resident:
            return self._travelling(indices)
        places = torch.from_numpy(np.asarray(indices)).to(self.device)
        labels = self._arrays["labels"][places]
        if self.examples.a_offsets is None:
            return Batch(self._arrays["a"][places], labels, None)
        width = padded_width(self.examples.lengths(indices), indices, self.plan)
        first, padding_mask = self._rows("a", places, width)
        if self.examples.b is None:
            return Batch(first, labels, padding_mask)
        second, padding_mask_b = self._rows("b", places, width)
        return Batch(torch.stack((first, second), 1), labels, torch.stack((padding_mask, padding_mask_b), 1))

    def _rows(self, name: str, places: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Tokens [B,T] of the texts `a` or `b`, or numbers [B,T,C], 0 behind their ends, and where they are."""
        offsets, tokens = self._arrays[f"{name}_offsets"], self._arrays[name]
        begin, end = offsets[places], offsets[places + 1]
        at = begin[:, None] + torch.arange(width, device=self.device)
        padding_mask = at < end[:, None]
        taken = tokens[at.clamp_max(len(tokens) - 1)]
        if taken.is_floating_point():
            return taken.masked_fill(~padding_mask[..., None], 0), padding_mask
        return taken.long().masked_fill(~padding_mask, 0), padding_mask

    def _travelling(self, indices: np.ndarray) -> Batch:
        found = collate(self.examples, indices, self.plan)
        labels = self._tensor(found.labels)
        if found.images is not None:
            return Batch(self._tensor(found.images), labels, None)
        assert found.tokens is not None
        assert found.padding_mask is not None
        if found.tokens_b is None or found.padding_mask_b is None:
            return Batch(self._tensor(found.tokens), labels, self._tensor(found.padding_mask))
        pair = (np.stack((found.tokens, found.tokens_b), 1), np.stack((found.padding_mask, found.padding_mask_b), 1))
        return Batch(self._tensor(pair[0]), labels, self._tensor(pair[1]))

    def _tensor(self, array: np.ndarray) -> Tensor:
        # A copy: a memory map opened for reading must not lie under a tensor that could be written to. torch cannot
        # index 16-bit unsigned numbers on a GPU.
        wide = array.astype(np.int32) if array.dtype == np.uint16 else np.array(array)
        return torch.from_numpy(wide).to(self.device)
