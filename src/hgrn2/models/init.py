"""All initial weights, with their sources.

normal        every matrix normal(0, std), std 0.02: hgru2-pytorch's language model and flash-linear-attention.
scaled_normal the same, projections that write to the residual stream divided by the root of their number (2 L; L in
              models without gated linear units): GPT-2's rule.

Learned positions are normal(0, std). Biases start at 0, norm weights at 1, lower-bound parameters at 1 (hgru2, xmixers;
any constant gives the same softmax, so layer l starts bounded by l/L), biases of forget gates as `memory` says, HGRN1's
phases at 10000^(-2j/D) (hgru-pytorch), steps and rates of decay of Mamba, RG-LRU and LRU as published, convolutions
uniform within 1/sqrt(W) as PyTorch's own Conv1d.
"""

import math

import torch
from torch import nn

from hgrn2.layers.block import Block
from hgrn2.layers.embedding import Positions
from hgrn2.layers.norm import Norm
from hgrn2.models.backbone import Backbone
from hgrn2.models.config import InitConfig
from hgrn2.models.open_gates import open_gates


@torch.no_grad()
def initialise(model: nn.Module, config: InitConfig) -> None:
    """Give every parameter of a model its starting value, in place; a model made on the meta device works after
    `to_empty`. Uses PyTorch's global random generator."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=config.std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Norm):
            module.reset_parameters()
        elif isinstance(module, Positions) and module.table is not None:
            nn.init.normal_(module.table, std=config.std)
        elif isinstance(module, Backbone) and module.lower_bounds is not None:
            nn.init.ones_(module.lower_bounds)
    if config.input_std:
        for name in ("embedding", "input"):
            if isinstance(first := getattr(model, name, None), (nn.Linear, nn.Embedding)):
                nn.init.normal_(first.weight, std=config.input_std)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.mixer.start()
    if config.kind == "scaled_normal":
        writers = [part.out_proj for block in blocks for part in (block.mixer, block.glu) if part is not None]
        for writer in writers:
            writer.weight /= math.sqrt(len(writers))
    if config.memory:
        open_gates(model, config.memory)
