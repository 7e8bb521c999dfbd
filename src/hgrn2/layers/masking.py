"""Padding: tokens that leave a state exactly as it was, wherever they stand among the others.

In a recurrence that is a gate of one and an input of zero. The short convolution looks at neighbours, so its tokens are
moved together first: row after row without padding, packed, and whatever was left out as one more document behind them.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.ops.arguments import check_tensors

P = ParamSpec("P")
R = TypeVar("R")


def accepts_keep(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which also takes `padding_mask` under its earlier keyword, "keep"."""

    @functools.wraps(function)
    def renamed(*args: Any, **options: Any) -> Any:
        if "keep" in options:
            options["padding_mask"] = options.pop("keep")
        return function(*args, **options)

    return renamed


def check_padding_mask(padding_mask: Tensor | None, x: Tensor) -> None:
    """Refuse a mask that is not [B,T] bool beside x [B,T,D]; reads no device memory."""
    check_tensors(padding_mask=padding_mask)
    if padding_mask is not None and (padding_mask.shape != x.shape[:2] or padding_mask.dtype != torch.bool):
        dtype = str(padding_mask.dtype).removeprefix("torch.")
        raise UserError(
            f"padding_mask must be {list(x.shape[:2])} bool, one value per token; "
            f"got {list(padding_mask.shape)} {dtype}"
        )


def convolve_kept(
    x: Tensor, weight: Tensor, padding_mask: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`ops.causal_conv` over the tokens that are kept, as if the others were not there.

    Args:
        x: [B,T,D].
        weight: [D,W].
        padding_mask: [B,T] bool.
        state, cu_seqlens: as in `ops.causal_conv`.

    Returns:
        y [B,T,D], meaningless where padding_mask is False, and the last W-1 kept inputs of each sequence.
    """
    flat, kept = x.flatten(0, 1), padding_mask.flatten()
    total = flat.shape[0]
    ends = cu_seqlens
    if ends is None:
        ends = torch.arange(x.shape[0] + 1, device=x.device) * x.shape[1]
    before = torch.cat((kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)))
    offsets = torch.cat((before[ends.long()], before.new_full((1,), total)))
    order = (~kept).to(torch.uint8).argsort(stable=True)
    if state is not None:
        state = torch.cat((state, torch.zeros_like(state[:1])))
    y, final = ops.causal_conv(flat[order].unsqueeze(0), weight, state=state, cu_seqlens=offsets)
    assert final is not None
    return torch.zeros_like(flat).index_copy(0, order, y[0].to(flat.dtype)).view_as(x), final[:-1]
