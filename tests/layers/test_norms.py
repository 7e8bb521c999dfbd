"""Norms against their formulas in plain numbers."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from hgrn2.layers.config import NormKind
from hgrn2.layers.norm import Norm

KINDS: tuple[NormKind, ...] = ("rms", "layer", "simple_rms", "head_rms")
EPS = 0.03  # large enough that a wrong or forgotten eps shows


def stated(kind: str, row: list[float], weight: list[float], bias: list[float], heads: int) -> list[float]:
    if kind == "layer":
        mean = math.fsum(row) / len(row)
        variance = math.fsum((x - mean) ** 2 for x in row) / len(row)
        return [(x - mean) / math.sqrt(variance + EPS) * w + b for x, w, b in zip(row, weight, bias, strict=True)]
    size = len(row) // heads if kind == "head_rms" else len(row)
    made: list[float] = []
    for start in range(0, len(row), size):
        group = row[start : start + size]
        made += [x / math.sqrt(math.fsum(y * y for y in group) / size + EPS) for x in group]
    return made if kind == "simple_rms" else [x * w for x, w in zip(made, weight, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_formula(kind: NormKind, randomised: Callable, same: Callable) -> None:
    norm = randomised(Norm(kind, 12, EPS, heads=3))
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = [1.0] * 12 if norm.weight is None else norm.weight.tolist()
    bias = [0.0] * 12 if norm.bias is None else norm.bias.tolist()
    expected = [[stated(kind, row, weight, bias, 3) for row in batch] for batch in x.tolist()]
    same(norm(x), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "tensors"), [("rms", 1), ("layer", 2), ("simple_rms", 0), ("head_rms", 1)])
def test_parameters_and_their_start(kind: NormKind, tensors: int) -> None:
    norm = Norm(kind, 8, EPS, heads=2)
    assert len(list(norm.parameters())) == tensors
    assert norm.weight is None or torch.equal(norm.weight, torch.ones(8))
    assert norm.bias is None or torch.equal(norm.bias, torch.zeros(8))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_loses_no_more_than_its_output_must(kind: NormKind, randomised: Callable) -> None:
    """The sums run in float32: the error is a few roundings of the values themselves, not of a thousand additions."""
    norm = randomised(Norm(kind, 1024, 1e-6, heads=4)).bfloat16()
    x = (100 + torch.randn(4, 1024, generator=torch.Generator().manual_seed(2))).bfloat16()
    if kind == "layer":
        x = x - 100
    y = norm(x)
    assert y.dtype == torch.bfloat16
    expected = norm.double()(x.double())
    assert float((y.double() - expected).abs().max()) <= 2 * torch.finfo(torch.bfloat16).eps * float(
        expected.abs().max()
    )


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        yield 2 + 3 * torch.randn(4, 5, 12, generator=generator, dtype=torch.float64)


def test_batch_norm_is_pytorchs(randomised: Callable, same: Callable) -> None:
    """Training, gradients, running statistics and evaluation, beside BatchNorm1d over the tokens."""
    ours, theirs = randomised(Norm("batch", 12, EPS)), nn.BatchNorm1d(12, EPS).double()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for x in batches():
        results = []
        for run in (ours, lambda x: theirs(x.flatten(0, 1)).view_as(x)):
            leaf = x.clone().requires_grad_()
            y = run(leaf)
            results.append((y, *torch.autograd.grad(y.square().sum() + y[0, 0, 0], [leaf])))
        for mine, other in zip(*results, strict=True):
            same(mine, other, 3000)
    for name in ("running_mean", "running_var"):
        same(getattr(ours, name), getattr(theirs, name))
    same(ours.eval()(x), theirs.eval()(x.flatten(0, 1)).view_as(x))


def test_batch_norm_leaves_padding_out(randomised: Callable, same: Callable) -> None:
    padding_mask = torch.arange(5) < torch.tensor([[5], [2], [0], [3]])
    padded, packed = (randomised(Norm("batch", 12, EPS)) for _ in range(2))
    for x in batches():
        results = []
        for norm, leaf in ((padded, x.masked_fill(~padding_mask.unsqueeze(-1), 1e6)), (packed, x[padding_mask])):
            leaf.requires_grad_()
            y = norm(leaf, padding_mask)[padding_mask] if norm is padded else norm(leaf)
            grad = torch.autograd.grad(y.pow(3).sum(), leaf)[0]
            results.append((y, grad[padding_mask] if norm is padded else grad))
        for mine, expected in zip(*results, strict=True):
            same(mine, expected, 3000)
    same(padded.running_mean, packed.running_mean)
    same(padded.running_var, packed.running_var)


def test_batch_norm_reads_tokens_one_by_one_in_evaluation(randomised: Callable) -> None:
    norm = randomised(Norm("batch", 12, EPS))
    norm.running_var.abs_()
    norm.eval()
    before = norm.running_mean.clone()
    for x in batches():
        assert torch.equal(norm(x)[1, 2], norm(x[1:2, 2:3])[0, 0])
    assert torch.equal(norm.running_mean, before)
