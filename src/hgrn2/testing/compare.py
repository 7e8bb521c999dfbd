"""How far two results may lie apart: a small multiple of what plain PyTorch loses, measured, plus a few roundings."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

FACTOR = 2.0
"""How many times the loss of the plain token loop in the same dtype a backend may lose."""
FLOOR = 16.0
"""What it may lose besides, in epsilons of the result's dtype: a few roundings, where the loop itself is lucky."""
ONE_PRODUCT_FLOOR = 64.0
"""The floor where one product serves a whole chunk (`hgru2.chunked.one_product`): it divides by decays down to
0.3^64 = e^-77, and at 77 the running sums of log f stand 64 epsilons apart."""


class Finding(NamedTuple):
    """One comparison: what was compared, how far apart it was, how far it may be."""

    what: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """False too where the error is not a number."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.what}: {self.error:.3g}, allowed {self.allowed:.3g}{'' if self.ok else '  <-- too far'}"


def failures(findings: Iterable[Finding]) -> str:
    """The findings that are not ok, one per line; empty when all are."""
    return "\n".join(str(finding) for finding in findings if not finding.ok)


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in float64; where `want` is all zero, 0 for exact zeros and infinity otherwise."""
    if got.shape != want.shape:
        return math.inf
    wide = torch.complex128 if want.is_complex() else torch.float64
    got, want = got.detach().to(wide), want.detach().to(wide)
    distance, size = float((got - want).norm()), float(want.norm())
    if distance == 0:
        return 0.0
    return distance / size if size else math.inf


def different_bits(got: Tensor, want: Tensor) -> int:
    """How many values are not the same to the bit; NaN differs from everything, all of them where the shapes differ."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return max(got.numel(), want.numel(), 1)
    got, want = (torch.view_as_real(x.detach().resolve_conj()) if x.is_complex() else x.detach() for x in (got, want))
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[got.element_size()]
    same = (got.contiguous().view(integer) == want.contiguous().view(integer)) & ~got.isnan()
    return int((~same).sum())


def allowed(loss: float, dtype: torch.dtype, floor: float = FLOOR) -> float:
    """The largest relative error for a result of this dtype, given what the plain token loop loses on these inputs."""
    if not math.isfinite(loss):
        raise ValueError("the plain token loop fails on these inputs; it cannot set a tolerance")
    return FACTOR * loss + floor * torch.finfo(dtype).eps
