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
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from hgrn2.layers.block import Block

FLOAT32 = MixedPrecisionPolicy(cast_forward_inputs=False)


def shard(model: nn.Module, mesh: Any, *, bfloat16: bool) -> None:
    """Cut a model that every process has whole, in place; its methods may be called as before.

    Args:
        mesh: a `DeviceMesh` of two dimensions, copies and shards.
        bfloat16: matrices of the blocks are gathered in bfloat16; autocast is the caller's.
    """
    matrices = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    # Where nothing is cut, to give weights back after the forward saves no more than the copies that autocast has too.
    again = None if not bfloat16 or mesh.size(mesh.ndim - 1) > 1 else False
    for block in _blocks(model):
        linear = matrices_of(block)
        if bfloat16 and linear:
            fully_shard(linear, mesh=mesh, mp_policy=matrices, reshard_after_forward=again)
        fully_shard(block, mesh=mesh, mp_policy=FLOAT32)
    fully_shard(model, mesh=mesh, mp_policy=FLOAT32)
    if "nccl" not in dist.get_backend_config():  # NCCL alone is sure to have means
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    for name in ("loss", "loss_and_state", "hidden"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile the forward of every block of a model that `shard` has cut; options as of `torch.compile`.

    What gathers parameters and gives them back are hooks, around the forward of a module. Those of a block stay outside
    of what is compiled; those of its matrices, a group of their own in bfloat16, would break it in pieces at every
    matrix, and are moved to the block: gathered once before it, given back after it. Sizes are as they are seen, and
    dynamic where another one is seen: sizes of parameters that FSDP gathers would be dynamic too if any were from the
    start.
    """
    for block in _blocks(model):
        group = next((one._get_fsdp_state() for one in matrices_of(block) if hasattr(one, "_get_fsdp_state")), None)
        if group is not None:
            group._pre_forward_hook_handle.remove()
            group._post_forward_hook_handle.remove()
            block.register_forward_pre_hook(group._pre_forward, prepend=True, with_kwargs=True)
            block.register_forward_hook(group._post_forward)
        block.forward = torch.compile(block.forward, **options)


def _blocks(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def matrices_of(block: Block) -> list[Any]:
    """Linear maps without biases, which travel and multiply as bfloat16 where the run does."""
    return [part for part in block.modules() if isinstance(part, nn.Linear) and part.bias is None]
