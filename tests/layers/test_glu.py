"""The gated linear unit against its formula."""

import math
from collections.abc import Callable

import pytest
import torch

from hgrn2.layers.config import GLUActivation
from hgrn2.layers.glu import GLU

FORMULAS: dict[str, Callable[[float], float]] = {
    "none": lambda x: x,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
}


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
def test_formula(activation: GLUActivation, bias: bool, randomised: Callable, same: Callable) -> None:
    width, hidden = 6, 10
    glu = randomised(GLU(width, hidden, activation, bias=bias))
    assert sum(p.numel() for p in glu.parameters()) == 3 * width * hidden + (2 * hidden + width if bias else 0)
    into, out = glu.in_proj.weight, glu.out_proj.weight
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros_like(x)
    for place in ((b, t) for b in range(2) for t in range(3)):
        y = glu.out_proj.bias.clone() if bias else torch.zeros(width, dtype=torch.float64)
        for m in range(hidden):
            gate = into[m] @ x[place] + (glu.in_proj.bias[m] if bias else 0)
            value = into[hidden + m] @ x[place] + (glu.in_proj.bias[hidden + m] if bias else 0)
            y = y + out[:, m] * FORMULAS[activation](float(gate)) * value
        expected[place] = y
    same(glu(x), expected)
