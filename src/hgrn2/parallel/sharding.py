"""Sharded data parallelism: PyTorch's `fully_shard` on every block and on what is around them.

Each process keeps a part of every parameter, gradient and optimiser state, and gathers a block's parameters while it
computes that block. Parameters are cut along their first dimension over `parallel.shard` processes; the others hold
copies (HSDP). Gradients are averaged over all that read different tokens, in float32.

In bfloat16 a block's matrices travel and multiply as bfloat16, which is what autocast makes of them on one device, in a
group of their own. Everything else (norms, phases, convolutions, embedding and head, biases, and above all the lower
bounds, whose softmax over layers loses them in 16 bits) stays float32, as do inputs: `cast_forward_inputs` would round
the bounds that a block is given without a word.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from hgrn2.layers.block import Block

FLOAT32 = MixedPrecisionPolicy(cast_forward_inputs=False)


def shard(model: nn.Module, mesh: Any, *, bfloat16: bool, whole_blocks: bool = False) -> None:
    """Cut a model that every process has whole, in place; its methods may be called as before.

    Args:
        mesh: a `DeviceMesh` of two dimensions, copies and shards.
        bfloat16: matrices of the blocks are gathered in bfloat16; autocast is the caller's.
        whole_blocks: one group a block, in float32: for blocks that are compiled, in which nothing may be gathered.
    """
    matrices = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        linear: list[nn.Module] = [
            part for part in block.modules() if isinstance(part, nn.Linear) and part.bias is None
        ]
        if bfloat16 and not whole_blocks and linear:
            fully_shard(linear, mesh=mesh, mp_policy=matrices)
        fully_shard(block, mesh=mesh, mp_policy=FLOAT32)
    fully_shard(model, mesh=mesh, mp_policy=FLOAT32)
    for name in ("loss", "loss_and_state", "hidden"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
