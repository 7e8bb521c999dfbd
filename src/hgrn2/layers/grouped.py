"""A linear map whose matrix has blocks on its diagonal alone."""

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Linear):
    """x [...,I] cut into G groups, each with a matrix of its own -> [...,O]; O I / G weights, [O,I/G] group after
    group."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, bias: bool) -> None:
        super().__init__(inputs // groups, outputs, bias=bias)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """[...,I] -> [...,O]."""
        if self.groups == 1:
            return super().forward(input)
        weight = self.weight.unflatten(0, (self.groups, -1))
        y = torch.einsum("...gi,goi->...go", input.unflatten(-1, (self.groups, -1)), weight).flatten(-2)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Groups beside what PyTorch shows."""
        return f"{super().extra_repr()}, groups={self.groups}"
