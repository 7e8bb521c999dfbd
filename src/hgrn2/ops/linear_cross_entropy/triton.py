"""The softmax of a chunk of logits as one kernel: loss of each row, and the gradient in the logits' place.

A program reads its row twice, the second time from the cache, and writes it once.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 8


@triton.jit
def _rows_kernel(
    logits, targets, losses, classes, stride, ignore_index, smoothing, GRADIENTS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    base = logits + row * stride
    columns = tl.arange(0, BLOCK)
    counts = target != ignore_index
    largest = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    plain = tl.zeros((), tl.float32)
    wanted = tl.zeros((), tl.float32)
    for first in range(0, classes, BLOCK):
        inside = first + columns < classes
        z = tl.load(base + first + columns, mask=inside, other=-float("inf")).to(tl.float32)
        above = tl.maximum(largest, tl.max(z, 0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(z - above), 0)
        largest = above
        plain += tl.sum(tl.where(inside, z, 0.0), 0)
        wanted += tl.sum(tl.where(first + columns == target, z, 0.0), 0)
    log_total = largest + tl.log(total)
    loss = log_total - (1 - smoothing) * wanted - smoothing * (plain / classes)
    valid = (target >= 0) & (target < classes)
    loss = tl.where(valid, loss, float("nan"))  # a target that no class has must not pass for a good one
    tl.store(losses + row, tl.where(counts, loss, 0.0))
    if GRADIENTS:
        for first in range(0, classes, BLOCK):
            inside = first + columns < classes
            z = tl.load(base + first + columns, mask=inside, other=-float("inf")).to(tl.float32)
            share = tl.exp(z - log_total) - smoothing / classes
            share = tl.where(first + columns == target, share - (1 - smoothing), share)
            share = tl.where(counts, share, 0.0)
            tl.store(base + first + columns, share.to(logits.dtype.element_ty), mask=inside)


def rows(logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, gradients: bool) -> Tensor:
    """`chunked.Rows` in one kernel, for logits of 32 bits or fewer."""
    losses = logits.new_empty(logits.shape[0], dtype=torch.float32)
    if logits.shape[0]:
        with (
            torch.cuda.device(logits.device) if logits.is_cuda else nullcontext()
        ):  # Triton launches on the current one
            _rows_kernel[(logits.shape[0],)](
                logits, targets, losses, logits.shape[1], logits.stride(0), ignore_index, smoothing,
                GRADIENTS=gradients, BLOCK=BLOCK, num_warps=WARPS,  # pyright: ignore[reportCallIssue]
            )  # fmt: skip
    return losses
