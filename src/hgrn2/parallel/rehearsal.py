"""What one of many processes would hold of a model, found without the others and without its numbers.

A process group that only claims to have members (PyTorch's fake one) and tensors without memory are enough for the very
code that spreads a model: pieces of weights, optimiser states and what blocks keep for their backward come out with the
sizes that a real run has. What is communicated and how long it takes is not seen here (`traffic.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hgrn2.errors import UserError
from hgrn2.layers.block import Block
from hgrn2.models.config import ModelConfig, Recompute
from hgrn2.models.language import LanguageModel
from hgrn2.parallel.config import ParallelConfig
from hgrn2.parallel.context import sequence_parallel
from hgrn2.parallel.pieces import local
from hgrn2.parallel.ranks import Ranks
from hgrn2.parallel.sharding import matrices_of
from hgrn2.parallel.tensor import tensor_parallel
from hgrn2.parallel.traffic import Weights


@contextmanager
def rehearsed(parallel: ParallelConfig) -> Iterator[Ranks]:
    """The first of so many processes, none of which is there; its groups answer at once, with nothing.

    Raises:
        UserError: this process belongs to a real group.
    """
    from torch.distributed._tools import fake_collectives  # shapes of what groups give back
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert fake_collectives
    if dist.is_initialized():
        raise UserError("a plan is made in a process of its own: leave torchrun out")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=parallel.ranks)
    try:
        yield Ranks(parallel, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def spread_model(config: ModelConfig, ranks: Ranks, *, bfloat16: bool) -> LanguageModel:
    """This process's part of a model, on the meta device."""
    with torch.device("meta"):
        model = LanguageModel(config)
    ranks.spread(model, bfloat16=bfloat16)
    return model


def bytes_of(model: nn.Module) -> int:
    """Of the pieces of parameters that this process has."""
    return sum(local(parameter.detach()).nbytes for parameter in model.parameters())


def weights_of(model: LanguageModel, *, bfloat16: bool) -> tuple[Weights, int]:
    """What is gathered of a spread model, and the bytes of the largest block when it is gathered."""
    gathered, blocks, largest = 0, 0, 0
    everything = sum(4 * parameter.numel() for parameter in model.parameters())
    for block in (module for module in model.modules() if isinstance(module, Block)):
        narrow = {id(one.weight) for one in matrices_of(block)} if bfloat16 else set()
        own = sum(parameter.numel() * (2 if id(parameter) in narrow else 4) for parameter in block.parameters())
        gathered, largest = gathered + own, max(largest, own)
        blocks += sum(4 * parameter.numel() for parameter in block.parameters())
    return Weights(gathered=gathered, blocks=blocks, around=everything - blocks), largest


@dataclass(frozen=True)
class Kept:
    """Bytes of activations of one accumulation part in one process."""

    kept: int
    """Of all blocks together, from the forward to the backward."""
    largest: int
    """Of one block when it is not computed again: what its backward works on."""


def activations(
    config: ModelConfig, ranks: Ranks, *, rows: int, length: int, bfloat16: bool, recompute: Recompute
) -> Kept:
    """What blocks keep of `rows` sequences, of whose tokens this process has `length` each.

    Every kind of block is run once on tensors without memory, under hooks that see what autograd keeps; parameters do
    not count, and memory that several tensors share counts once. torch.compile keeps less.
    """
    pattern = config.pattern or (config.mixer.kind,)
    some = replace(config, layers=min(config.layers, 2 * len(pattern)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = LanguageModel(some)
        if ranks.config.tensor > 1:
            tensor_parallel(model, ranks.tensors)
        if ranks.config.context > 1:
            sequence_parallel(model, ranks.contexts)
        model.set_recompute(recompute)
        seen: dict[str, tuple[int, int]] = {}
        bounded = model.backbone.with_lower_bound[1:]
        for layer, (mixer, block) in enumerate(zip(some.mixers, model.backbone.blocks, strict=True)):
            assert isinstance(block, Block)
            if bfloat16:
                for matrix in matrices_of(block):
                    matrix.weight = nn.Parameter(matrix.weight.detach().bfloat16())
            lower_bound = torch.rand(config.width) if layer in bounded else None
            x = torch.randn(rows, length, config.width, requires_grad=True)
            # The last one of a kind: the first layer has no lower bounds.
            seen[mixer.kind] = _kept(block, x, lower_bound, bfloat16=bfloat16), x.nbytes
    each = [(layers, *seen[mixer.kind]) for mixer, layers in config.mixer_counts if layers]
    largest = max(kept for _, kept, _ in each)
    if recompute == "block":
        return Kept(sum(layers * size for layers, _, size in each), largest)
    # A GLU that is computed again keeps its input, which no hook sees.
    more = 1 if recompute == "glu" else 0
    return Kept(sum(layers * (kept + more * size) for layers, kept, size in each), largest)


def _kept(block: Block, x: Tensor, lower_bound: Tensor | None, *, bfloat16: bool) -> int:
    own = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
    seen: dict[int, int] = {}

    def pack(y: Tensor) -> Tensor:
        storage = y.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage.nbytes()
        return y

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y),
    ):
        block(x, lower_bound, output_state=False)
    return sum(seen.values())
