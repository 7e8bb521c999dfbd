"""Bytes that a process sends in one training step, by arithmetic from settings; no torch here.

Rings are counted: all-gather and reduce-scatter among R processes send (R-1)/R of the whole each, all-reduce both.
"""

from dataclasses import dataclass
from typing import Any

from hgrn2.layers.config import KINDS
from hgrn2.models.config import ModelConfig
from hgrn2.parallel.config import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One kind of exchange."""

    what: str
    sent: float
    """Bytes of one process in one step."""
    span: int
    """Neighbouring ranks among which the group lies: whether it crosses machines depends on that."""
    hidden: bool
    """Goes on behind the computation of blocks; else everything waits for it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of one process's parameters, whole but for what `tensor` cuts."""

    gathered: int
    """Of blocks, in the dtype in which they are gathered."""
    blocks: int
    """Of blocks in float32, as gradients are summed."""
    around: int
    """Of embedding, head, last norm and lower bounds in float32."""


def traffic(
    model: ModelConfig,
    parallel: ParallelConfig,
    weights: Weights,
    *,
    rows: int,
    length: int,
    parts: int,
    bfloat16: bool,
) -> list[Traffic]:
    """What one process sends in one step.

    Args:
        rows, length: sequences of one accumulation part of this process, and tokens of its slice of each.
        parts: accumulation parts.
        bfloat16: outputs of matrices are.
    """
    shards, tensor, context = parallel.sharded, parallel.tensor, parallel.context
    copies, ring = parallel.data * context // shards, _ring
    span, everyone = shards * tensor, parallel.ranks
    found = [
        # A block's weights twice, forward and backward; what stands around blocks stays from one to the other.
        Traffic(what="weights gathered", sent=parts * ring(shards) * (2 * weights.gathered + weights.around),
                span=span, hidden=True),
        Traffic(what="gradients summed and cut", sent=parts * ring(shards) * (weights.blocks + weights.around),
                span=span, hidden=True),
        Traffic(what="gradients of copies", sent=parts * 2 * ring(copies) * (weights.blocks + weights.around) / shards,
                span=everyone, hidden=True),
    ]  # fmt: skip
    numbers = rows * length * model.width * model.layers * (2 if model.glu_width else 1)
    sums = numbers * ((2 if bfloat16 else 4) + 4)  # each branch's output forward; its input's gradient, in float32
    found.append(Traffic(what="activations of tensor", sent=parts * 2 * ring(tensor) * sums, span=tensor,
                         hidden=False))  # fmt: skip
    if model.vocab_size % tensor == 0:
        own = 2 * 4 * rows * length * model.width  # embeddings forward, the head's input backward; the rest is small
        found.append(Traffic(what="embeddings of tensor", sent=parts * 2 * ring(tensor) * own, span=tensor,
                             hidden=False))  # fmt: skip
    states = sum(layers * _states(model.width, mixer, rows, length, bfloat16) for mixer, layers in model.mixer_counts)
    sent = parts * 2 * (context - 1) * states / tensor
    found.append(Traffic(what="states of context", sent=sent, span=context * tensor, hidden=False))
    return [one for one in found if one.sent]


def _ring(ranks: int) -> float:
    return (ranks - 1) / ranks


def _states(width: int, mixer: Any, rows: int, length: int, bfloat16: bool) -> int:
    """Bytes of what one slice tells the others of a layer, in one direction: decay and state in float32; attention all
    keys and values."""
    kind = KINDS[mixer.kind]
    if kind.grows:
        return rows * kind.state(width, mixer, length) * (2 if bfloat16 else 4)
    return 4 * rows * (kind.state(width, mixer, 0) + width)
