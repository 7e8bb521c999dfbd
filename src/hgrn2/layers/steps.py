"""How step sizes and convolutions of both Mambas start."""

import math

import torch
from torch import Tensor, nn

SMALLEST_STEP = 1e-4
"""Below it no channel starts, as published."""


def start_steps(bias: Tensor, least: float, most: float) -> None:
    """Biases of the step sizes, in place: softplus of them is even in its logarithm between `least` and `most`."""
    share = torch.rand(bias.shape, device=bias.device, dtype=torch.float64)
    step = torch.exp(share * (math.log(most) - math.log(least)) + math.log(least)).clamp_min(SMALLEST_STEP)
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus


def start_taps(weight: Tensor | None, bias: Tensor | None) -> None:
    """Weight [C,W] and bias [C] of the short convolution, in place: uniform within W^-1/2, as in PyTorch."""
    if weight is not None and bias is not None:
        for part in (weight, bias):
            nn.init.uniform_(part, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
