"""Batches of labelled examples as a pure function of (seed, step), padded or bucketed by length.

An epoch is N // B batches over a fresh random order; what does not fill a batch is left out, other examples each time.
Bucketing sorts pools of `pool` batches by length, cuts them into batches and shuffles those, so that padding stays
small while every example still meets changing neighbours.
"""

from dataclasses import dataclass

import numpy as np

from hgrn2.data.classes import Examples
from hgrn2.data.permutation import GOLDEN, keys, permute
from hgrn2.settings import refuse


@dataclass(frozen=True, kw_only=True)
class ClassPlan:
    """Which examples make the batch of a step, and how they are padded."""

    batch_size: int
    """B."""
    max_length: int = 0
    """Longest sequence; 0: any. What `too_long` does with a longer one is told by that setting."""
    too_long: str = "cut"
    """cut: keep the beginning; stop: a `UserError`."""
    multiple: int = 64
    """T is rounded up to a multiple of this (never above max_length), so that few different shapes occur."""
    pool: int = 16
    """Batches sorted by length together; 1: no bucketing."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "multiple", "pool"):
            refuse(getattr(self, name) < 1, f"{name} must be at least 1, not {getattr(self, name)}")
        refuse(self.max_length < 0, f"max_length must not be negative, not {self.max_length}")
        refuse(self.too_long not in ("cut", "stop"), f"too_long is {self.too_long!r}; choose one of: cut, stop")
        refuse(not 0 <= self.seed < 2**64, f"seed must lie in [0, 2^64), not {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ClassBatch:
    """One batch.

    `tokens` int64 [B,T], or numbers float32 [B,T,C], with 0 where `padding_mask` bool [B,T] is False; of pairs also
    `tokens_b` and `padding_mask_b`, of the same T. For images `tokens` is None and `images` uint8 [B,H,W,C]. `labels`
    int64 [B]; `indices` int64 [B] are the examples.
    """

    labels: np.ndarray
    indices: np.ndarray
    tokens: np.ndarray | None = None
    padding_mask: np.ndarray | None = None
    tokens_b: np.ndarray | None = None
    padding_mask_b: np.ndarray | None = None
    images: np.ndarray | None = None


class ClassBatches:
    """The batches of examples under a plan; refuses fewer examples than one batch."""

    def __init__(self, examples: Examples, plan: ClassPlan) -> None:
        count = len(examples)
        refuse(count < plan.batch_size, f"{count} examples are fewer than one batch of {plan.batch_size}")
        self.examples, self.plan = examples, plan
        self.batches_per_epoch = count // plan.batch_size

    def indices(self, step: int) -> np.ndarray:
        """Which examples a step takes, int64 [B]."""
        plan = self.plan
        epoch, place = divmod(step, self.batches_per_epoch)
        key = keys(plan.seed, np.array([epoch]))
        first = place - place % plan.pool
        size = min(plan.pool, self.batches_per_epoch - first)
        rows = np.arange(first * plan.batch_size, (first + size) * plan.batch_size)
        rows = permute(rows, len(self.examples), key)
        if size > 1 and self.examples.a_offsets is not None:
            rows = rows[np.argsort(self.examples.lengths(rows), kind="stable")]
            place = first + int(permute(np.array([place - first]), size, key ^ np.uint64((GOLDEN + first) % 2**64))[0])
        begin = (place - first) * plan.batch_size
        return rows[begin : begin + plan.batch_size]

    def batch(self, step: int, part: int = 0, parts: int = 1) -> ClassBatch:
        """The examples of a step, or one of `parts` equal parts of them."""
        refuse(self.plan.batch_size % parts != 0, f"{self.plan.batch_size} examples do not divide into {parts} parts")
        if step < 0 or not 0 <= part < parts:
            raise IndexError(f"step {step}, part {part} of {parts}")
        return collate(self.examples, np.split(self.indices(step), parts)[part], self.plan)

    def in_order(self) -> list[np.ndarray]:
        """Every example once, the last batch perhaps smaller: for measuring. Sorted by length; a list of int64 [n]."""
        order = np.argsort(self.examples.lengths(np.arange(len(self.examples))), kind="stable")
        return np.split(order, np.arange(self.plan.batch_size, len(order), self.plan.batch_size))


def collate(examples: Examples, indices: np.ndarray, plan: ClassPlan) -> ClassBatch:
    """The named examples as one batch."""
    labels = np.asarray(examples.labels[indices], dtype=np.int64)
    if examples.a_offsets is None:
        return ClassBatch(labels=labels, indices=indices, images=np.asarray(examples.a[indices]))
    width = padded_width(examples.lengths(indices), indices, plan)
    tokens, padding_mask = _padded([examples.first(i) for i in indices], width)
    if examples.b is None:
        return ClassBatch(labels=labels, indices=indices, tokens=tokens, padding_mask=padding_mask)
    tokens_b, padding_mask_b = _padded([examples.second(i) for i in indices], width)
    return ClassBatch(
        labels=labels, indices=indices, tokens=tokens, padding_mask=padding_mask, tokens_b=tokens_b,
        padding_mask_b=padding_mask_b
    )  # fmt: skip


def padded_width(lengths: np.ndarray, indices: np.ndarray, plan: ClassPlan) -> int:
    """T of a batch: its longest sequence, cut to the plan's and rounded up; refuses what the plan does not cut."""
    longest = int(lengths.max())
    if plan.max_length and longest > plan.max_length:
        refuse(
            plan.too_long == "stop",
            f"example {indices[int(lengths.argmax())]} has {longest} tokens, the model has {plan.max_length} positions",
        )
        longest = plan.max_length
    width = max(1, -(-longest // plan.multiple) * plan.multiple)
    return min(width, plan.max_length) if plan.max_length else width


def _padded(sequences: list[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    # Ids, or real numbers [T,C].
    kind = sequences[0].dtype if sequences[0].dtype.kind == "f" else np.dtype(np.int64)
    tokens = np.zeros((len(sequences), width, *sequences[0].shape[1:]), dtype=kind)
    padding_mask = np.zeros((len(sequences), width), dtype=bool)
    for row, sequence in enumerate(sequences):
        length = min(len(sequence), width)
        tokens[row, :length] = sequence[:length]
        padding_mask[row, :length] = True
    return tokens, padding_mask
