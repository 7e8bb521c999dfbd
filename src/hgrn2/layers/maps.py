"""Maps from D to n D channels with fewer weights than a dense matrix: x [...,D] -> [...,n,D].

    dense           W [n D, D]                                         n D²
    low_rank        B A, A [r,D], B [n D, r]                           r D (1 + n), r = D / (n + 1): about D²
    grouped         blocks [n D/G, D/G] on a diagonal                  n D² / G
    grouped_mixed   (1 + M) over the groups of that, M [G,G]           n D² / G + G²
    khatri_rao      A ⊙ B column by column, A [n,D], B [D,D]           D² + n D        y[j,c] = Σ_d A[j,d] B[c,d] x[d]
    kronecker       P ⊗ Q, P [n a,a], Q [b,b], a b = D                 n a² + b²
    hadamard        one map and n vectors, y[j] = s_j ⊙ (x W)          D² + n D

All start so that an output has the variance that a dense matrix of normal(0, 0.02) gives it.
"""

import math

import torch
from torch import Tensor, nn

from hgrn2.layers.grouped import GroupedLinear
from hgrn2.layers.kinds import ExpansionMap, rank_of, sides

STD = 0.02
SPREAD = 0.5
"""Of the scales of hadamard around one, which tell the copies apart."""


class Dense(nn.Module):
    """One matrix."""

    def __init__(self, width: int, copies: int, groups: int) -> None:
        super().__init__()
        self.copies = copies
        self.map = nn.Linear(width, copies * width, bias=False)

    def start(self) -> None:
        """As every matrix."""
        nn.init.normal_(self.map.weight, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,n,D]."""
        return self.map(x).unflatten(-1, (self.copies, -1))


class LowRank(nn.Module):
    """Two thin matrices."""

    def __init__(self, width: int, copies: int, groups: int) -> None:
        super().__init__()
        rank, self.copies = rank_of(width, copies), copies
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, copies * width, bias=False)

    def start(self) -> None:
        """Both alike, so that r products of two have the variance of one."""
        for part in (self.down, self.up):
            nn.init.normal_(part.weight, std=math.sqrt(STD / math.sqrt(self.up.in_features)))

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,n,D]."""
        return self.up(self.down(x)).unflatten(-1, (self.copies, -1))


class Grouped(nn.Module):
    """Every group of channels is expanded by itself."""

    def __init__(self, width: int, copies: int, groups: int) -> None:
        super().__init__()
        self.copies, self.groups = copies, groups
        self.map = GroupedLinear(width, copies * width, groups, bias=False)

    def start(self) -> None:
        """Wider, for an output has fewer terms."""
        nn.init.normal_(self.map.weight, std=STD * math.sqrt(self.groups))

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,n,D]; a channel's copies come from its own group."""
        return self.by_group(x).transpose(-3, -2).flatten(-2)

    def by_group(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,G,n,D/G]."""
        return self.map(x).unflatten(-1, (self.groups, self.copies, -1))


class GroupedMixed(Grouped):
    """The groups, and a little of each in every other."""

    def __init__(self, width: int, copies: int, groups: int) -> None:
        super().__init__(width, copies, groups)
        self.mixing = nn.Parameter(torch.empty(groups, groups))

    def start(self) -> None:
        """The mixing of normal(0, 0.02)."""
        super().start()
        nn.init.normal_(self.mixing, std=STD)

    def by_group(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,G,n,D/G]."""
        y = super().by_group(x)
        return y + torch.einsum("hg,...gnc->...hnc", self.mixing.to(y.dtype), y)


class KhatriRao(nn.Module):
    """Columns that are Kronecker products of the columns of two matrices."""

    def __init__(self, width: int, copies: int, groups: int) -> None:
        super().__init__()
        self.copy_factor = nn.Parameter(torch.empty(copies, width))
        self.map = nn.Linear(width, width, bias=False)

    def start(self) -> None:
        """Both factors alike."""
        for part in (self.copy_factor, self.map.weight):
            nn.init.normal_(part, std=math.sqrt(STD))

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,n,D]."""
        return self.map(x.unsqueeze(-2) * self.copy_factor.to(x.dtype))


class Kronecker(nn.Module):
    """The Kronecker product of two small matrices."""

    def __init__(self, width: int, copies: int, groups: int) -> None:
        super().__init__()
        self.rows, self.columns = sides(width)
        self.copies = copies
        self.left = nn.Linear(self.rows, copies * self.rows, bias=False)
        self.right = nn.Linear(self.columns, self.columns, bias=False)

    def start(self) -> None:
        """Both factors alike."""
        for part in (self.left, self.right):
            nn.init.normal_(part.weight, std=math.sqrt(STD))

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,n,D], P X Qᵀ for x as a matrix X [a,b]."""
        y = self.right(x.unflatten(-1, (self.rows, self.columns)))
        return self.left(y.transpose(-1, -2)).transpose(-1, -2).unflatten(-2, (self.copies, -1)).flatten(-2)


class Hadamard(nn.Module):
    """One map for all copies, with a scale of its own for each of them and each channel."""

    def __init__(self, width: int, copies: int, groups: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)
        self.scales = nn.Parameter(torch.empty(copies, width))

    def start(self) -> None:
        """Scales around one, their mean square one."""
        nn.init.normal_(self.map.weight, std=STD / math.sqrt(1 + SPREAD**2))
        nn.init.normal_(self.scales, mean=1.0, std=SPREAD)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,n,D]."""
        y = self.map(x).unsqueeze(-2)
        return y * self.scales.to(y.dtype)


MAPS: dict[ExpansionMap, type] = {
    "dense": Dense, "low_rank": LowRank, "grouped": Grouped, "grouped_mixed": GroupedMixed, "khatri_rao": KhatriRao,
    "kronecker": Kronecker, "hadamard": Hadamard,
}  # fmt: skip
