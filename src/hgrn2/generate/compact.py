"""A state of one sequence as bytes: exactly, or in eight bits a number.

In eight bits the numbers of each tensor go in blocks of 32, each with a scale of its own in float32: x = s q with
s = max |x| / 127 and q rounded, so 9/32 of the bytes of float32 and an error of at most max |x| / 254 for each block.
Whole numbers are left as they are.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from hgrn2.layers.state import ModelState

Held = Literal["exact", "int8"]
BLOCK = 32
"""Numbers with one scale."""
_ALIGNED = 8
"""Bytes at a multiple of which every tensor begins, so that it can be looked at where it lies."""


class StateBytes:
    """Turns states of one model, each of one sequence, into bytes and back."""

    def __init__(self, like: ModelState, held: Held = "exact") -> None:
        """`like`: a state of one sequence, from `zeros(1)`."""
        self.held: Held = held
        self._like = like.to("cpu")
        self._named = self._like.tensors()

    def size(self, tokens: int) -> int:
        """Bytes of the state after so many tokens."""
        shapes = self._like.shapes(tokens)
        return sum(self._part(name, math.prod(shapes[name])) for name in self._named)

    def pack(self, state: ModelState) -> Tensor:
        """uint8 [size], a copy."""
        parts = []
        for name, tensor in state.tensors().items():
            flat = _real(tensor.detach().to("cpu")).reshape(-1)
            if self._eight(name):
                numbers, scales = rounded(flat)
                parts += [_bytes(scales), _bytes(numbers)]
            else:
                parts.append(_bytes(flat))
        return torch.cat([torch.nn.functional.pad(part, (0, -part.numel() % _ALIGNED)) for part in parts])

    def unpack(self, flat: Tensor, tokens: int) -> ModelState:
        """The state of `pack`, which had read so many tokens; exact ones lie in the memory of `flat`."""
        named, at = {}, 0
        shapes = self._like.shapes(tokens)
        for name, like in self._named.items():
            count = math.prod(shapes[name])
            part = flat[at : at + self._part(name, count)]
            at += part.numel()
            if self._eight(name):
                count *= 2 if like.is_complex() else 1
                blocks = -(-count // BLOCK)
                begin = _whole(4 * blocks)
                scales = part[: 4 * blocks].view(torch.float32)
                numbers = part[begin : begin + BLOCK * blocks].view(torch.int8)
                part = restored(numbers, scales, count, _real(like).dtype).view(torch.uint8)
            size = math.prod(shapes[name]) * like.element_size()
            named[name] = part[:size].view(like.dtype).view(shapes[name])
        return ModelState.from_tensors(named, self._like)

    def _eight(self, name: str) -> bool:
        like = self._named[name]
        return self.held == "int8" and (like.is_floating_point() or like.is_complex())

    def _part(self, name: str, count: int) -> int:
        """Bytes of a tensor of so many numbers."""
        like = self._named[name]
        if not self._eight(name):
            return _whole(count * like.element_size())
        blocks = -(-count * (2 if like.is_complex() else 1) // BLOCK)
        return _whole(4 * blocks) + _whole(BLOCK * blocks)


def rounded(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Real numbers [n] -> int8 [ceil(n/32),32] and their scales float32 [ceil(n/32)]."""
    blocks = torch.nn.functional.pad(flat.float(), (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1) / 127
    numbers = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).round().clamp(-127, 127)
    return numbers.to(torch.int8), scales


def restored(numbers: Tensor, scales: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The first `count` numbers of `rounded`, [count], in their dtype."""
    return (numbers.view(-1, BLOCK).float() * scales.unsqueeze(1)).reshape(-1)[:count].to(dtype).contiguous()


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _whole(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
