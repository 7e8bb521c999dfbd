"""Sums and gatherings over a group of processes that autograd goes back through, and those of plain numbers.

Every process of the group calls each of them, forward and backward, in one order: what a process does not use itself it
must still be led back through (`connected`). Gradients follow one rule: the loss
is the sum of what the processes return, so the gradient of a tensor that several hold alike is the sum of theirs.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any
"""A `torch.distributed.ProcessGroup`."""
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name since torch 2.13
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """`torch.compiler.disable`: a compiled block calls it as it is."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def all_gather(x: Tensor, group: Group) -> Tensor:
    """[...] of every process -> [R,...], without gradients."""
    x = x.detach().contiguous()
    found = x.new_empty(dist.get_world_size(group), *x.shape)
    _all_gather(_flat(found), _flat(x), group=group)
    return found


def all_sum(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes, without gradients."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(torch.view_as_real(total) if total.is_complex() else total, group=group)
    return total


@untraced
def gathered(x: Tensor, group: Group) -> Tensor:
    """[...] of every process -> [R,...]; a process receives the sum of all gradients of its own part."""
    return _Gather.apply(x, group)  # pyright: ignore[reportReturnType]


@untraced
def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes of tensors that differ; its gradient is summed over the processes too."""
    return _Sum.apply(x, group)  # pyright: ignore[reportReturnType]


@untraced
def copied(x: Tensor, group: Group) -> Tensor:
    """x, which all processes hold alike and use for different parts of one result: its gradient is the sum of
    theirs."""
    return _Copy.apply(x, group)  # pyright: ignore[reportReturnType]


@untraced
def reduced(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes of parts of one result that all go on with alike: each has its whole gradient."""
    return _Reduce.apply(x, group)  # pyright: ignore[reportReturnType]


@untraced
def connected(x: Tensor, other: Tensor) -> Tensor:
    """x; going back through it leads through `other` too, with a gradient of zero."""
    return _Connect.apply(x, other)  # pyright: ignore[reportReturnType]


def _flat(x: Tensor) -> Tensor:
    return (torch.view_as_real(x) if x.is_complex() else x).view(-1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        ctx.group = group
        return all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        own = torch.empty_like(grad[0], memory_format=torch.contiguous_format)
        _reduce_scatter(_flat(own), _flat(grad.contiguous()), group=ctx.group)
        return own, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        ctx.group = group
        return all_sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return all_sum(grad, ctx.group), None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return all_sum(grad, ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        return all_sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, None


class _Connect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        ctx.like = other.shape, other.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        shape, dtype = ctx.like
        return grad, grad.new_zeros(shape, dtype=dtype)
