"""Recurrent state as a value: made, indexed, moved and saved without touching a module."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.errors import UserError


@dataclass(frozen=True)
class LayerState:
    """What one block carries from token to token."""

    recurrent: Tensor
    """[B,H,K,V] float32 (hgru2), [B,D] float32 (hgru1_real) or complex64 (hgru1)."""
    conv: Tensor | None = None
    """The last W-1 inputs of the short convolution [B,W-1,3D], oldest first; None without one."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "LayerState":
        """The same state with every tensor changed."""
        return LayerState(change(self.recurrent), None if self.conv is None else change(self.conv))

    def overwrite(self, other: "LayerState") -> "LayerState":
        """Write the values of `other` into these tensors, in their dtype, and return this state."""
        for mine, theirs in ((self.recurrent, other.recurrent), (self.conv, other.conv)):
            if mine is not None and theirs is not None and theirs is not mine:
                mine.copy_(theirs)
        return self


@dataclass(frozen=True)
class ModelState:
    """The states of all blocks for a batch of B sequences; its size does not depend on how many tokens were read."""

    layers: tuple[LayerState, ...]

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self.layers[0].recurrent.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that the state occupies."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> "ModelState":
        """The same state with every tensor changed."""
        return ModelState(tuple(layer.map(change) for layer in self.layers))

    def select(self, rows: Tensor | list[int] | slice) -> "ModelState":
        """The sequences `rows` of the batch, in that order; repeats fork a sequence."""
        index = torch.tensor(rows) if isinstance(rows, list) else rows
        return self.map(lambda x: x[index].clone())

    def insert(self, rows: Tensor | list[int] | slice, other: "ModelState") -> "ModelState":
        """A new state in which the sequences `rows` are those of `other`."""
        index = torch.tensor(rows) if isinstance(rows, list) else rows
        made = []
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            recurrent, conv = mine.recurrent.clone(), None if mine.conv is None else mine.conv.clone()
            recurrent[index] = theirs.recurrent
            if conv is not None and theirs.conv is not None:
                conv[index] = theirs.conv
            made.append(LayerState(recurrent, conv))
        return ModelState(tuple(made))

    def overwrite(self, other: "ModelState") -> "ModelState":
        """Write the values of `other`, a state of the same batch, into these tensors, and return this state."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.overwrite(theirs)
        return self

    def to(self, device: torch.device | str) -> "ModelState":
        """The same state on another device."""
        return self.map(lambda x: x.to(device))

    def detach(self) -> "ModelState":
        """The same values without gradient history, for truncated backpropagation."""
        return self.map(Tensor.detach)

    def tensors(self) -> dict[str, Tensor]:
        """Flat names for saving: `0.recurrent`, `0.conv`, `1.recurrent`, …"""
        named = {f"{n}.recurrent": layer.recurrent for n, layer in enumerate(self.layers)}
        return named | {f"{n}.conv": layer.conv for n, layer in enumerate(self.layers) if layer.conv is not None}

    @staticmethod
    def from_tensors(named: dict[str, Tensor], like: "ModelState") -> "ModelState":
        """Rebuild from flat names; `like` (from `zeros`) gives the shapes and dtypes that must match."""
        wanted = like.tensors()
        if set(named) != set(wanted):
            raise UserError("the state's tensors do not match this model's layers")
        for name, tensor in wanted.items():
            if named[name].shape[1:] != tensor.shape[1:] or named[name].dtype != tensor.dtype:
                raise UserError(f"state tensor {name} is {_kind(named[name])}, this model needs {_kind(tensor)}")
        if len({named[name].shape[0] for name in wanted}) > 1:
            raise UserError("the state's tensors disagree about the number of sequences")
        return ModelState(
            tuple(LayerState(named[f"{n}.recurrent"], named.get(f"{n}.conv")) for n in range(len(like.layers)))
        )


def _kind(tensor: Tensor) -> str:
    """Shape without the batch, and dtype."""
    return f"{str(tensor.dtype).removeprefix('torch.')} [B{''.join(f',{n}' for n in tensor.shape[1:])}]"
