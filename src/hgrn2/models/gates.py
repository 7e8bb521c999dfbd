"""What a model's forget gates do on real tokens: the numbers behind the figure of time scales."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrn2.layers.block import Block
from hgrn2.models.backbone import Backbone
from hgrn2.models.modes import reading


class GateStatistics(NamedTuple):
    """Of one layer, a value for each of its forget gates, float32 on the CPU."""

    lower_bound: Tensor
    """γ."""
    mean_log_forget: Tensor
    """Mean of log f over the measured tokens; -1 over it is the channel's time scale in tokens."""
    layer: int
    """Which layer of the stack it is, from 0; some may have no gates."""


def gate_statistics(model: Any, tokens: Tensor) -> list[GateStatistics]:
    """Run `model` on tokens [B,T] and average log f_t of every channel and layer that has such gates; leaves the model
    as it was."""
    backbone: Backbone = model.backbone
    entered: list[Tensor] = []
    found: list[GateStatistics] = []
    with reading(model):
        model.hidden(tokens, output_state=False, trace=entered)
        parts = zip(backbone.blocks, entered[:-1], backbone.layer_lower_bounds(), strict=True)
        for layer, (block, x, lower_bound) in enumerate(parts):
            assert isinstance(block, Block)
            mixer: Any = block.mixer
            log_forget = mixer.log_forget(block.mixer_norm(x), lower_bound)
            if log_forget is not None:
                mean = log_forget.float().mean((0, 1))
                lower_bound = torch.zeros_like(mean) if lower_bound is None else lower_bound.float()
                lower_bound = lower_bound.repeat_interleave(
                    len(mean) // len(lower_bound)
                )  # channels of several copies share one
                found.append(GateStatistics(lower_bound.cpu(), mean.cpu(), layer))
    return found
