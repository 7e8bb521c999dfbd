"""Inputs of classifiers: patches of images as tokens, and positions added to tokens."""

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.directions import Shape
from hgrn2.ops.arguments import check_tensors


class PatchEmbedding(nn.Module):
    """Images [B,C,height,width] -> tokens [B,h·w,D], row by row; one linear map of the C·p² numbers of a patch."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.proj = nn.Linear(channels * patch * patch, width)

    def shape(self, images: Tensor) -> Shape:
        """Patches along height and width of [B,C,height,width] floating-point images.

        Raises:
            UserError: another number of channels, sides that are no multiples of the patch, integers.
        """
        check_tensors(images=images)
        if images.dim() != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            kind = str(images.dtype).removeprefix("torch.")
            wanted = f"[B,{self.channels},height,width] floating-point"
            raise UserError(f"images must be {wanted}; got {list(images.shape)} {kind}")
        height, width = images.shape[2:]
        if height % self.patch or width % self.patch or not height or not width:
            raise UserError(f"images of {height} x {width} pixels do not divide into patches of {self.patch}")
        return height // self.patch, width // self.patch

    def forward(self, images: Tensor) -> tuple[Tensor, Shape]:
        """The tokens, and how many patches stand along height and width."""
        rows, columns = self.shape(images)
        patches = images.unflatten(3, (columns, self.patch)).unflatten(2, (rows, self.patch))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, h·w, C·p·p]
        return self.proj(patches.to(self.proj.weight.dtype)), (rows, columns)


class Positions(nn.Module):
    """What is added to tokens for where they stand: a learned table, or sines and cosines of the position.

    A table of an image ([h,w,D]) is interpolated to other resolutions; a line's ([T,D]) is cut to shorter sequences
    and refuses longer ones. Sines work for any size, with half of the width for rows and half for columns.
    """

    def __init__(self, kind: str, width: int, size: tuple[int, ...]) -> None:
        """kind: none, learned or sine; size: (T,) or (h, w) of the table."""
        super().__init__()
        self.kind, self.width = kind, width
        self.table = nn.Parameter(torch.empty(*size, width)) if kind == "learned" else None

    def line(self, x: Tensor) -> Tensor:
        """x [B,T,D] with the positions of a line added."""
        if self.table is not None:
            if x.shape[1] > self.table.shape[0]:
                raise UserError(f"a sequence of {x.shape[1]} steps is longer than the {self.table.shape[0]} positions")
            return x + self.table[: x.shape[1]].to(x.dtype)
        return x + sines(x.shape[1], self.width, x.device).to(x.dtype) if self.kind == "sine" else x

    def image(self, x: Tensor, shape: Shape) -> Tensor:
        """x [B,h·w,D] with the positions of an image of `shape` = (h, w) added."""
        if self.table is not None:
            return x + resized(self.table, shape).flatten(0, 1).to(x.dtype)
        if self.kind != "sine":
            return x
        rows, columns = (sines(length, self.width // 2, x.device) for length in shape)
        grid = torch.cat((rows[:, None].expand(*shape, -1), columns[None].expand(*shape, -1)), -1)
        return x + grid.flatten(0, 1).to(x.dtype)


def sines(length: int, width: int, device: torch.device) -> Tensor:
    """[T,D] float32: sin(t w_j) in the first half and cos(t w_j) in the second, w_j = 10000^(-2j/D)."""
    half = width // 2
    # In float64: at position 16,000 a float32 angle has lost three digits.
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * rate
    return torch.cat((angle.sin(), angle.cos()), -1).float()


def resized(table: Tensor, shape: Shape) -> Tensor:
    """A table [h,w,D] for images of another number of patches, bicubic and anti-aliased."""
    if tuple(table.shape[:2]) == tuple(shape):
        return table
    grid = table.permute(2, 0, 1).unsqueeze(0).float()
    made = nn.functional.interpolate(grid, size=shape, mode="bicubic", align_corners=False, antialias=True)
    return made[0].permute(1, 2, 0).to(table.dtype)
