"""The processes of a run, what this one is among them, and a model among them.

Rank r stands at (data, context, tensor) of a grid with tensor running fastest: neighbours exchange most. The same
processes without `tensor`, the readers, are copies x shards for `fully_shard`.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from hgrn2.parallel.collectives import all_gather, all_sum
from hgrn2.parallel.config import ParallelConfig
from hgrn2.parallel.context import sequence_parallel
from hgrn2.parallel.pieces import joined, local, piece_of
from hgrn2.parallel.sharding import shard
from hgrn2.parallel.tensor import Cut, tensor_parallel
from hgrn2.settings import refuse


class Ranks:
    """This process among the others; the process group of `torch.distributed` is there already.

    Raises:
        UserError: another number of processes than the settings make.
    """

    def __init__(self, config: ParallelConfig, device: torch.device) -> None:
        self.config, self.device, self.rank, world = config, device, dist.get_rank(), dist.get_world_size()
        refuse(
            world != config.ranks,
            f"{world} processes were started, but parallel.data {config.data} x context {config.context} x tensor "
            f"{config.tensor} are {config.ranks}",
        )
        reader, self.tensor = divmod(self.rank, config.tensor)
        self.data, self.context = divmod(reader, config.context)
        readers = config.data * config.context
        copies = readers // config.sharded

        def grid(**sizes: int) -> Any:
            return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

        weights = grid(copies=copies, shards=config.sharded, tensor=config.tensor)
        self.mesh = weights["copies", "shards"] if copies > 1 else weights["shards"]
        self.shards, self.tensors = weights.get_group("shards"), weights.get_group("tensor")
        self.readers = grid(readers=readers, tensor=config.tensor).get_group("readers")
        self.contexts = grid(data=config.data, context=config.context, tensor=config.tensor).get_group("context")
        self.cuts: dict[str, Cut] = {}
        """Of the model's parameters that `tensor` cuts, by name."""

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, and writes what all have alike."""
        return self.rank == 0

    def spread(self, model: nn.Module, *, bfloat16: bool = False) -> None:
        """Leave of a model that every process has whole, with the same weights, what is this process's; in place.

        Args:
            bfloat16: as of `hgrn2.parallel.sharding.shard`.
        """
        if self.config.tensor > 1:
            self.cuts = tensor_parallel(model, self.tensors)
        if self.config.context > 1:
            sequence_parallel(model, self.contexts)
        shard(model, self.mesh, bfloat16=bfloat16)

    def slice(self, x: Tensor) -> Tensor:
        """This process's slice of the tokens [B,T,...]."""
        return x.chunk(self.config.context, 1)[self.context]

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all that read different tokens of a number of this process's."""
        return all_sum(x, self.readers) / (self.config.data * self.config.context)

    def whole(self, name: str, x: Tensor, like: Tensor) -> Tensor:
        """The whole of a parameter, of its gradient or of its optimiser's state, in every process, which all call it.

        Args:
            name: of the parameter.
            x: sharded, or this process's piece.
            like: the parameter.
        """
        found, cut = joined(x.detach(), like.detach()), self.cuts.get(name)
        return found if cut is None or found.dim() == 0 else cut.join(all_gather(found, self.tensors))

    def own(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """This process's piece of a whole tensor that belongs to the parameter `like`; talks to nobody."""
        cut = self.cuts.get(name)
        mine = whole if cut is None or whole.dim() == 0 else cut.take(whole, self.tensor)
        return piece_of(mine, like.detach()).clone()  # not a view, which would hold on to the whole

    def shape(self, name: str, like: Tensor) -> list[int]:
        """Of the whole parameter `name`, of which `like` is this process's."""
        found, cut = list(like.shape), self.cuts.get(name)
        if cut is not None:
            found[cut.dim] *= cut.ranks
        return found

    @torch.no_grad()
    def clip(self, parameters: Iterable[tuple[str, nn.Parameter]], limit: float) -> Tensor:
        """Scale all gradients so that the norm of the whole gradient is at most `limit`; returns the norm before.

        Parts that every process of a tensor group computes alike are averaged over it first: what rounds otherwise in
        two of them would grow from step to step.
        """
        cut, alike = [], []
        for name, parameter in parameters:
            if parameter.grad is not None:
                (cut if name in self.cuts else alike).append(local(parameter.grad))
        if self.config.tensor > 1 and alike:
            for dtype in {x.dtype for x in alike}:
                together = [x for x in alike if x.dtype == dtype]
                flat = all_sum(torch.cat([x.flatten() for x in together]), self.tensors) / self.config.tensor
                for x, mean in zip(together, flat.split([x.numel() for x in together]), strict=True):
                    x.copy_(mean.view_as(x))
        squares = torch.stack([_square_sum(part, self.device) for part in (cut, alike)])
        squares = all_sum(squares, self.shards)
        norm = (squares[1] + all_sum(squares[0], self.tensors)).sqrt()
        if together := [*cut, *alike]:
            share = (limit / (norm + 1e-6)).clamp_max(1.0)
            torch._foreach_mul_(together, share)  # pyright: ignore[reportPrivateImportUsage]
        return norm


def _square_sum(tensors: list[Tensor], device: torch.device) -> Tensor:
    """In few kernels: a GPU waits for those of single tensors."""
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    if not tensors:
        return torch.zeros((), dtype=dtype, device=device)
    norms = torch._foreach_norm(tensors, 2, dtype=dtype)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).square().sum()
