"""Forward and backward of a training step as one CUDA graph for every shape of batch.

A small model's step is hundreds of kernels of a few microseconds, and Python takes longer to start them than the GPU to
run them. A graph starts them all at once. It reads its batch from, and adds its gradients to, tensors that stay where
they are; what a shape needs in between is shared by all shapes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 2
"""Steps of a shape that run as they are before it is captured: they build kernels, which a capture must not."""
Key = tuple[tuple[torch.Size, torch.dtype] | None, ...]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor | None, ...]
    loss: Tensor
    """Overwritten by the next replay."""


class StepGraphs:
    """Calls `backward`, which returns a loss and adds to gradients, through graphs; batches are tuples of CUDA tensors.

    Gradients must never be dropped (`zero_grad(set_to_none=False)`): the graphs add to the tensors that they saw.
    """

    def __init__(self, backward: Callable[[Any], Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self.backward = backward
        for parameter in parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._runs: dict[Key, int] = {}
        self._captured: dict[Key, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: tuple[Tensor | None, ...]) -> Tensor:
        """The loss of a batch, detached; its gradients are added to those that are there."""
        key = tuple(None if part is None else (part.shape, part.dtype) for part in batch)
        runs = self._runs[key] = self._runs.get(key, 0) + 1
        if runs <= WARM_UP:
            return self._as_it_is(batch)
        if key not in self._captured:
            self._captured[key] = self._capture(batch)
        found = self._captured[key]
        for kept, part in zip(found.inputs, batch, strict=True):
            if kept is not None and part is not None:
                kept.copy_(part)
        found.graph.replay()
        return found.loss.clone()

    def _as_it_is(self, batch: tuple[Tensor | None, ...]) -> Tensor:
        # On a stream of its own, as PyTorch asks for what comes before a capture.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self.backward(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _capture(self, batch: tuple[Tensor | None, ...]) -> _Captured:
        inputs = tuple(None if part is None else part.clone() for part in batch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self.backward(inputs)
        return _Captured(graph, inputs, loss)
