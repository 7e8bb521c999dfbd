"""Gates that start near one: a model whose state outlives the sequence from the first step on.

With weights around zero a forget gate of HGRN2 or HGRN1 starts at a half, and what a token wrote is gone after two
more. Nothing links a query to its value then, no gradient opens the gate, and nothing is learned for long
(docs/mqar.md has numbers). Language models hide this: their upper layers have high lower bounds, and near tokens teach
them.
"""

import math

import torch
from torch import Tensor, nn

from hgrn2.layers.directions import Directional
from hgrn2.layers.hgru1 import HGRU1
from hgrn2.layers.hgru2 import HGRU2

SHORTEST = 4.0
"""Tokens that the quickest channel remembers."""


@torch.no_grad()
def open_gates(model: nn.Module, memory: float) -> None:
    """Start forget gates, but for lower bounds and inputs, at 1 - 1/m; m goes from 4 to `memory` over the channels of a
    head (of the layer, for HGRN1), evenly in its logarithm. Other models are left as they are."""
    for mixer in model.modules():
        if isinstance(mixer, (HGRU2, HGRU1)):
            _start(mixer.in_proj, _logits(_memories(mixer, memory)))
        if isinstance(mixer, HGRU2) and mixer.conv is not None:
            # The bias passes through the convolution: its taps must sum to one there for it to come out again.
            taps = mixer.conv[-mixer.width :]
            taps += (1 - taps.sum(-1, keepdim=True)) / taps.shape[-1]
        if isinstance(mixer, Directional):
            for more in mixer.more:  # projections of further scans; the first one's are its unit's
                _start(more, _logits(_memories(mixer.unit, memory)))


def _start(projection: nn.Module, logits: Tensor) -> None:
    """The forget gates are the last rows of every fused projection."""
    bias = projection.bias
    assert isinstance(bias, Tensor)
    bias[-len(logits) :] = logits


def _memories(unit: HGRU2 | HGRU1, longest: float) -> Tensor:
    """m of every channel [D], float64."""
    count = unit.config.head_size if isinstance(unit, HGRU2) else unit.width
    if count == 1:
        return torch.full((unit.width,), longest, dtype=torch.float64)
    m = torch.logspace(math.log2(SHORTEST), math.log2(longest), count, base=2.0, dtype=torch.float64)
    return m.repeat(unit.width // count)


def _logits(m: Tensor) -> Tensor:
    """x with σ(x) = 1 - 1/m."""
    return (m - 1).log()
