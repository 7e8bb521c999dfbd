"""Heads of classifiers in plain numbers: a mean that looks past padding, and the comparison of two means."""

from collections.abc import Callable

import torch

from hgrn2.layers.heads import PairHead, PoolHead, mean_pool
from hgrn2.layers.norm import Norm


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_the_mean_looks_past_whatever_padding_holds(same: Callable) -> None:
    x = features(3, 5, 4)
    padding_mask = torch.tensor([[True] * 5, [False, True, False, True, True], [False] * 5])
    x[~padding_mask] = torch.nan
    pooled = mean_pool(x, padding_mask)
    same(pooled[0], x[0].mean(0))
    same(pooled[1], x[1, [1, 3, 4]].mean(0))
    assert (pooled[2] == 0).all()
    same(mean_pool(x[:1]), pooled[:1])


def test_a_mean_of_many_bfloat16_tokens_is_summed_in_float32() -> None:
    x = torch.full((1, 3000, 1), 1.0078125, dtype=torch.bfloat16)
    assert float(mean_pool(x)) == 1.0078125
    assert float(mean_pool(x, torch.ones(1, 3000, dtype=torch.bool))) == 1.0078125


def test_pool_head_puts_its_norm_between_mean_and_map(randomised: Callable, same: Callable) -> None:
    head = randomised(PoolHead(4, 3, Norm("simple_rms", 4, 0.1)))
    x = features(2, 5, 4)
    mean = x.mean(1)
    normed = mean / (mean.square().mean(-1, keepdim=True) + 0.1).sqrt()
    same(head(x), normed @ head.proj.weight.T + head.proj.bias)


def test_pair_head_compares(randomised: Callable, same: Callable) -> None:
    head = randomised(PairHead(4, 2, None))
    x = features(3, 2, 5, 4)
    padding_mask = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    logits = head(x, padding_mask)
    for row in range(3):
        u, v = (x[row, side, padding_mask[row, side]].mean(0) for side in (0, 1))
        hidden = head.hidden.weight @ torch.cat((u, v, u * v, u - v)) + head.hidden.bias
        active = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        same(logits[row], head.proj.weight @ active + head.proj.bias)
