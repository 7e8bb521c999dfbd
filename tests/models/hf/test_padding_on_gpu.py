"""Padding masks of transformers through the kernels of a GPU: a padded row gives what the row alone gives.

The dtype and the head size decide on the kernels: bfloat16 with n 64 runs in CUDA's, everything else in Triton's.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2.layers.config import MixerConfig
from hgrn2.models.hf import from_language_model
from hgrn2.ops.backend import choose

DEVICE = "cuda"
LENGTHS = (300, 7, 129, 64)
CASES = {
    "cuda": ("cuda", torch.bfloat16, {"head_size": 64}),
    "cuda-conv": ("cuda", torch.bfloat16, {"head_size": 64, "conv_width": 4}),
    "triton": ("triton", torch.float32, {"head_size": 64}),
    "triton-conv": ("triton", torch.float32, {"head_size": 32, "conv_width": 4}),
    "triton-bfloat16": ("triton", torch.bfloat16, {"head_size": 32}),
    "vectors": ("triton", torch.float32, {"kind": "hgru1_real"}),
}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return float((found.cpu().double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padded_is_alone(case: str, side: str, make: Callable, padded: Callable) -> None:
    backend, dtype, mixer = CASES[case]
    n = int(mixer.get("head_size", 1))
    op = "hgru2" if n > 1 else "gated_scan"
    if choose(torch.device(DEVICE), "auto", op=op, dtype=dtype, keys=n, values=n).backend != backend:
        pytest.skip(f"{backend} does not serve {dtype} with n {n} on this GPU")
    half = make("hgru2", width=256, mixer=MixerConfig(**mixer)).to(dtype).eval()
    exact = copy.deepcopy(half).double()
    model: Any = from_language_model(half)
    model = model.to(DEVICE)
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(1, half.config.vocab_size, (length,), generator=generator) for length in LENGTHS]
    ids, mask = padded(rows, side)
    next_ids = torch.full((len(rows), 1), 5)
    with torch.no_grad():
        together = model(ids.to(DEVICE), attention_mask=mask.to(DEVICE))
        wider = torch.cat((mask, torch.ones_like(next_ids)), 1).to(DEVICE)
        after = model(next_ids.to(DEVICE), attention_mask=wider, past_key_values=together.past_key_values).logits
        # No mask: what stands behind a row cannot change it, and matrix products have the same sizes.
        behind = torch.cat((padded(rows, "right")[0], torch.zeros_like(next_ids)), 1)
        for n, row in enumerate(rows):
            behind[n, len(row)] = next_ids[n]
        plain = model(behind.to(DEVICE)).logits
        lost, found = [], []
        for n, row in enumerate(rows):
            expected = exact(torch.cat((row, next_ids[n]))[None])[0]
            lost.append(error(plain[n : n + 1, : len(row) + 1], expected))
            found.append(error(torch.cat((together.logits[n : n + 1, mask[n].bool()], after[n : n + 1]), 1), expected))
    # The same sums in another order: what one order loses tells what the other may.
    assert max(found) <= 2 * max(lost), (found, lost)
