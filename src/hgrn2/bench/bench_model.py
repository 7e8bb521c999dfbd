"""A language model under one description, so that every measurement treats all of them alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.bench.settings import Compile
from hgrn2.generate.steps import Steps
from hgrn2.models.config import LossKind, Recompute


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where and how a model is run."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compile: Compile = "none"
    recompute: Recompute = "none"
    loss: LossKind = "auto"
    state_dtype: torch.dtype | None = None
    """Of hgrn2's states in decoding; None is the model's choice."""
    compile_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A language model with random weights, and how it is called."""

    name: str
    backend: str
    step_backend: str = ""
    """Of single tokens, where it is another."""
    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    """Tokens [B,T] -> logits [B,T,V]."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Training: tokens, targets [B,T] -> mean loss."""
    prefill: Callable[[Tensor, int], tuple[Tensor, Any]]
    """(prompt [B,T], number of tokens that will follow) -> (logits of the last position [B,V], state)."""
    step: Callable[[Tensor, Any], tuple[Tensor, Any]]
    """(token [B,1], state) -> (logits [B,V], state)."""
    fork: Callable[[Any], Any]
    """A state to go on from that leaves the given one as it was."""
    state_bytes: Callable[[Any], int]
    blocks: Sequence[nn.Module] = ()
    """What `compile="blocks"` compiles one by one."""
    flops: Callable[[int], float] | None = None
    """Floating-point operations that a token of a training sequence of this length needs; None: not counted."""
    steps: Callable[[int], Steps] | None = None
    """Decoding over fixed buffers for this many sequences, in place of `step`."""

    @property
    def parameters(self) -> int:
        """Trained numbers, each counted once."""
        return sum(p.numel() for p in self.model.parameters())


def full_loss(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss from all logits at once, in float32."""

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits(tokens).flatten(0, 1).float(), targets.flatten())

    return loss
