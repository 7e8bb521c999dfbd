"""What a model's forget gates do on real tokens: the numbers behind the picture of time scales."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrn2.layers.block import Block
from hgrn2.models.backbone import Backbone
from hgrn2.ops.hgru2.chunked import gates


class GateStatistics(NamedTuple):
    """Of one layer, a value for each of its D channels, float32 on the CPU."""

    lower_bound: Tensor
    """γ."""
    mean_log_forget: Tensor
    """Mean of log f over the measured tokens; -1 over it is the channel's time scale in tokens."""


@torch.no_grad()
def gate_statistics(model: Any, tokens: Tensor) -> list[GateStatistics]:
    """Run `model` on tokens [B,T] and average log f_t of every channel and layer; leaves the model as it was."""
    backbone: Backbone = model.backbone
    found: list[GateStatistics] = []

    def watch(mixer: Any, arguments: tuple[Any, ...]) -> None:
        x, bound = arguments[0], arguments[1]
        logits = mixer.forget_logits(x).float().flatten(0, 1)
        gamma = logits.new_zeros(logits.shape[1]) if bound is None else bound.float()
        found.append(GateStatistics(gamma.cpu(), gates(logits, gamma).log_forget.mean(0).cpu()))

    mixers = [module.mixer for module in backbone.blocks if isinstance(module, Block)]
    handles = [mixer.register_forward_pre_hook(watch) for mixer in mixers]
    training = model.training
    model.eval()
    try:
        model(tokens, output_state=False)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return found
