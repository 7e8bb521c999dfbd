"""Which published tensors make up each of ours. One table for both directions: there and back gives the same bits."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.models.tensor_files import Weights
from hgrn2.settings import refuse

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Part:
    """A published tensor."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """A parameter of ours is its parts below each other."""

    ours: str
    parts: tuple[Part, ...]
    taps: bool = False
    """Parts are convolutions [C,1,W] with the current token's tap last; ours are [C,W] and have it first."""

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Published values, in the order of the parts -> ours."""
        if self.taps:
            tensors = [tensor.squeeze(1).flip(1) for tensor in tensors]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def split(self, ours: Tensor) -> list[Tensor]:
        """Ours -> published values, in the order of the parts, contiguous and sharing no memory with each other."""
        pieces = ours.split([part.shape[0] for part in self.parts])
        if self.taps:
            pieces = [piece.flip(1).unsqueeze(1) for piece in pieces]
        return [piece.clone(memory_format=torch.contiguous_format) for piece in pieces]


def check(rules: Iterable[Rule], weights: Weights) -> None:
    """Refuse a folder whose tensors are not exactly those of the rules: names, then shapes and dtypes."""
    wanted = {part.name: list(part.shape) for rule in rules for part in rule.parts}
    _refuse_names(weights, "lacks", sorted(set(wanted) - set(weights.files)))
    _refuse_names(weights, "has unknown tensors", sorted(set(weights.files) - set(wanted)))
    for name, shape in wanted.items():
        found, kind = weights.shape(name), weights.dtype(name)
        refuse(found != shape, f"{weights.folder}: {name} is {found}, but its config.json makes it {shape}")
        refuse(kind not in _FLOATS, f"{weights.folder}: {name} has dtype {kind}, which is not supported")


def gather(rules: Iterable[Rule], weights: Weights) -> dict[str, Tensor]:
    """The state dict of our model, from checked weights; dtypes stay as they are."""
    return {rule.ours: rule.join([weights.get(part.name) for part in rule.parts]) for rule in rules}


def scatter(rules: Iterable[Rule], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict of ours."""
    published = {}
    for rule in rules:
        pieces = rule.split(ours[rule.ours])
        published |= {part.name: piece for part, piece in zip(rule.parts, pieces, strict=True)}
    return published


def _refuse_names(weights: Weights, fault: str, names: list[str]) -> None:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    refuse(bool(names), f"{weights.folder}: the weights do not fit config.json: {fault} {', '.join(names[:3])}{more}")
