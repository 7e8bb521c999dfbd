"""State as a value: made, indexed, moved and saved without touching a module."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hgrn2.errors import UserError

Rows = Tensor | list[int] | slice
"""Which sequences of a batch."""


class MixerState(Protocol):
    """What one mixer carries from token to token, for B sequences: `LayerState` or `KeyValues`."""

    @property
    def batch(self) -> int:
        """B."""
        ...

    @property
    def conv(self) -> Tensor | None:
        """The last W-1 inputs of the short convolution [B,W-1,3D], oldest first; None without one."""
        ...

    def map(self, change: Callable[[Tensor], Tensor]) -> Any:
        """The same state with every tensor of numbers changed."""
        ...

    def select(self, rows: Rows) -> Any:
        """A copy of the sequences `rows`, in that order."""
        ...

    def insert(self, rows: Rows, other: Any) -> Any:
        """A new state in which the sequences `rows` are those of `other`."""
        ...

    def overwrite(self, other: Any) -> Any:
        """The values of `other`, of as many sequences or of one for all, in this state's dtype and, where its size
        does not change, in its memory."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name."""
        ...

    def shapes(self, tokens: int) -> dict[str, list[int]]:
        """Shapes [B,...] of `tensors` after so many tokens of each sequence."""
        ...

    def restored(self, named: dict[str, Tensor], where: str) -> Any:
        """The state of these tensors, which must be of the kind of this one; `where` begins their names in errors."""
        ...


@dataclass(frozen=True)
class LayerState:
    """A state whose size does not depend on how many tokens were read."""

    recurrent: Tensor
    """[B,H,K,V] float32 (hgru2, gla, mamba2), [B,E,N] (mamba), [B,D] (hgru1_real, mingru, rglru) or complex64 (hgru1,
    lru), [B,D n] (wide_hgru1); mingru, rglru and lru expanded [B,D/n,n,n]."""
    conv: Tensor | None = None
    """The last W-1 inputs of the short convolution [B,W-1,channels], oldest first; None without one."""

    @property
    def batch(self) -> int:
        """B."""
        return self.recurrent.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> "LayerState":
        """The same state with every tensor changed."""
        return LayerState(change(self.recurrent), None if self.conv is None else change(self.conv))

    def select(self, rows: Rows) -> "LayerState":
        """A copy of the sequences `rows`, in that order."""
        return self.map(lambda x: x[_beside(rows, x)].clone())

    def insert(self, rows: Rows, other: "LayerState") -> "LayerState":
        """A new state in which the sequences `rows` are those of `other`."""
        recurrent, conv = self.recurrent.clone(), None if self.conv is None else self.conv.clone()
        place = _beside(rows, recurrent)
        recurrent[place] = other.recurrent
        if conv is not None and other.conv is not None:
            conv[place] = other.conv
        return LayerState(recurrent, conv)

    def to(self, device: torch.device | str) -> "LayerState":
        """The same state on another device; accelerate calls it where layers lie on several."""
        return self.map(lambda x: x.to(device))

    def overwrite(self, other: "LayerState") -> "LayerState":
        """Write the values of `other` into these tensors, in their dtype, and return this state."""
        for mine, theirs in ((self.recurrent, other.recurrent), (self.conv, other.conv)):
            if mine is not None and theirs is not None and theirs is not mine:
                mine.copy_(theirs)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """`recurrent`, and `conv` where there is one."""
        return {"recurrent": self.recurrent} | ({} if self.conv is None else {"conv": self.conv})

    def shapes(self, tokens: int) -> dict[str, list[int]]:
        """Shapes [B,...] of `tensors`; the number of tokens does not matter."""
        return {name: list(tensor.shape) for name, tensor in self.tensors().items()}

    def restored(self, named: dict[str, Tensor], where: str) -> "LayerState":
        """The state of these tensors, of any number of sequences."""
        check_names(set(named), set(self.tensors()))
        for name, tensor in self.tensors().items():
            if named[name].shape[1:] != tensor.shape[1:] or named[name].dtype != tensor.dtype:
                raise UserError(f"state tensor {where}{name} is {kind(named[name])}, this model needs {kind(tensor)}")
        return LayerState(named["recurrent"], named.get("conv"))


@dataclass(frozen=True)
class ModelState:
    """The states of all blocks for a batch of B sequences. Its size does not depend on how many tokens were read, but
    for attention, which keeps every one of them."""

    layers: tuple[Any, ...]
    """A `MixerState` for each block."""

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self.layers[0].batch

    @property
    def nbytes(self) -> int:
        """Bytes of the values that the state holds; attention sets aside memory for up to twice as many."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> "ModelState":
        """The same state with every tensor changed."""
        return ModelState(tuple(layer.map(change) for layer in self.layers))

    def select(self, rows: Rows) -> "ModelState":
        """The sequences `rows` of the batch, in that order; repeats fork a sequence."""
        index = torch.tensor(rows, dtype=torch.int64) if isinstance(rows, list) else rows
        return ModelState(tuple(layer.select(index) for layer in self.layers))

    def insert(self, rows: Rows, other: "ModelState") -> "ModelState":
        """A new state in which the sequences `rows` are those of `other`."""
        index = torch.tensor(rows, dtype=torch.int64) if isinstance(rows, list) else rows
        pairs = zip(self.layers, other.layers, strict=True)
        return ModelState(tuple(mine.insert(index, theirs) for mine, theirs in pairs))

    def overwrite(self, other: "ModelState") -> "ModelState":
        """The values of `other`, a state of the same batch or of one sequence for all, in this one's dtypes. Tensors of
        constant size are written to in place, and the state returned is this one; go on with what is returned."""
        made = tuple(mine.overwrite(theirs) for mine, theirs in zip(self.layers, other.layers, strict=True))
        same = all(new is old for new, old in zip(made, self.layers, strict=True))
        return self if same else ModelState(made)

    def to(self, device: torch.device | str) -> "ModelState":
        """The same state on another device."""
        return self.map(lambda x: x.to(device))

    def copy(self) -> "ModelState":
        """The same values in memory of their own; gradients flow through."""
        return self.map(Tensor.clone)

    def usable(self) -> "ModelState":
        """The same values, copied where a tensor was made in inference mode, which autograd would refuse to save."""
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return self
        return self.map(lambda x: x.clone() if x.is_inference() else x)

    def detach(self) -> "ModelState":
        """The same values without gradient history, for truncated backpropagation."""
        return self.map(Tensor.detach)

    def tensors(self) -> dict[str, Tensor]:
        """Flat names for saving: `0.recurrent`, `0.conv`, `1.recurrent`, …"""
        layers = [layer.tensors() for layer in self.layers]
        names = dict.fromkeys(name for layer in layers for name in layer)  # by kind, then by layer
        return {f"{n}.{name}": layer[name] for name in names for n, layer in enumerate(layers) if name in layer}

    def shapes(self, tokens: int) -> dict[str, list[int]]:
        """Shapes of `tensors` after so many tokens of each sequence."""
        return {f"{n}.{name}": s for n, layer in enumerate(self.layers) for name, s in layer.shapes(tokens).items()}

    @staticmethod
    def from_tensors(named: dict[str, Tensor], like: "ModelState") -> "ModelState":
        """Rebuild from flat names; `like` (from `zeros`) gives the shapes and dtypes that must match."""
        parts: list[dict[str, Tensor]] = [{} for _ in like.layers]
        for name, tensor in named.items():
            layer, _, part = name.partition(".")
            check_names({layer}, {str(n) for n in range(len(parts))} & {layer})
            parts[int(layer)][part] = tensor
        made = tuple(
            mine.restored(part, f"{n}.") for n, (mine, part) in enumerate(zip(like.layers, parts, strict=True))
        )
        if len({tensor.shape[0] for tensor in named.values()}) > 1:
            raise UserError("the state's tensors disagree about the number of sequences")
        return ModelState(made)


def check_names(given: set[str], wanted: set[str]) -> None:
    """Refuse tensors that are missing or too many."""
    if given != wanted:
        raise UserError("the state's tensors do not match this model's layers")


def _beside(rows: Rows, tensor: Tensor) -> Rows:
    """Rows as an index that a tensor takes: on its device, where layers may lie on several."""
    return rows.to(tensor.device) if isinstance(rows, Tensor) else rows


def kind(tensor: Tensor) -> str:
    """Shape without the batch, and dtype."""
    return f"{str(tensor.dtype).removeprefix('torch.')} [B{''.join(f',{n}' for n in tensor.shape[1:])}]"
