"""The loop over chunks of tokens: logits of a chunk, their softmax, and what it adds to loss and gradients.

    z = h Wᵀ      g = softmax(z) - (1-ε) onehot(target) - ε/V      dh = g W / n      dW = Σ gᵀ h / n

n, the number of tokens that count, divides at the very end: g itself then stays in the range of float16.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hgrn2.ops.backend import full_precision, work_dtype
from hgrn2.ops.linear_cross_entropy import aligned

CHUNK_BYTES = 1 << 28
"""Of the logits of one chunk: products stay large enough, and the chunk small beside a model. Twice that on a GPU: a
head of 50,257 classes and D = 512 then takes 13.8 ms for 32,768 tokens instead of 15.4 (H200)."""
Rows = Callable[[Tensor, Tensor, int, float, bool], Tensor]
"""Loss of each row [C] in float32 from logits [C,V]; with the flag set, the logits become their gradient g."""


def forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, smoothing: float, products: torch.dtype,
    gradients: bool, rows: Rows, chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """hidden [N,D], weight [V,D], targets [N] -> (mean loss, gradient of hidden, of weight; both empty if unasked)."""
    work = work_dtype(hidden.dtype)
    classes = weight.shape[0]
    size = chunk_tokens(classes, products, chunk_bytes * (2 if hidden.is_cuda else 1))
    kept = aligned.padded(weight, products)
    count = (targets != ignore_index).sum().to(work)
    at_least_one = count.clamp_min(1)  # where no token counts the mean is 0/0, but the gradients are 0
    loss = hidden.new_zeros((), dtype=work)
    d_hidden = hidden.new_empty(hidden.shape if gradients else 0)
    total = weight.new_zeros(kept.shape if gradients else 0, dtype=work)
    with full_precision(hidden.device):
        for first in range(0, hidden.shape[0], size):
            part = hidden[first : first + size].to(products)
            logits = part @ kept.T
            real, beyond = logits[:, :classes], logits[:, classes:]
            loss += rows(real, targets[first : first + size], ignore_index, smoothing, gradients).sum()
            if gradients:
                beyond.zero_()  # zero already, but for tokens that are not finite, and some of those may not count
                d_hidden[first : first + size] = (logits @ kept) / at_least_one
                total += logits.T @ part
    return loss / count, d_hidden, (total[:classes] / at_least_one).to(weight.dtype)


def chunk_tokens(classes: int, products: torch.dtype, chunk_bytes: int = CHUNK_BYTES) -> int:
    """How many tokens' logits fit: a power of two, so that products have even shapes; at least 16."""
    fit = max(16, chunk_bytes // (classes * products.itemsize))
    return 1 << (fit.bit_length() - 1)


def rows(logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, gradients: bool) -> Tensor:
    """`Rows` in plain PyTorch."""
    counts = targets != ignore_index
    place = targets.where(counts, 0).unsqueeze(1)
    z = logits.to(work_dtype(logits.dtype))
    total = z.logsumexp(1, keepdim=True)
    wanted = (1 - smoothing) * z.gather(1, place)
    wanted = wanted + smoothing * z.mean(1, keepdim=True) if smoothing else wanted
    loss = (total - wanted).squeeze(1).where(counts, 0)
    if gradients:
        share = (z - total).exp_()
        share.scatter_(1, place, share.gather(1, place) - (1 - smoothing))
        share = share - smoothing / z.shape[1] if smoothing else share
        logits.copy_(share.where(counts.unsqueeze(1), 0))
    return loss
