"""The check of `linear_cross_entropy`, whose tensors and results are unlike those of a scan."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from hgrn2.ops.linear_cross_entropy import linear_cross_entropy
from hgrn2.testing.cases import Case
from hgrn2.testing.compare import Finding, allowed, relative_error

NAME = "linear_cross_entropy"
CASE = Case(op=NAME, batch=1, tokens=70, heads=1, key=48, value=1021)
"""70 tokens of 48 channels, 1,021 classes."""
DTYPES = (torch.bfloat16, torch.float32)
SMOOTHING = 0.1


def findings(device: torch.device, dtype: torch.dtype, backend: str) -> list[Finding]:
    """Loss and both gradients against plain PyTorch in float64; plain PyTorch in `dtype` says how far they may be."""
    hidden, weight, targets = _problem(dtype)

    def plain(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(linear(x, w).to(torch.promote_types(w.dtype, torch.float32)), y, label_smoothing=SMOOTHING)

    def fused(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, y, label_smoothing=SMOOTHING, backend=backend)

    float64_reference = _results(plain, hidden.double(), weight.double(), targets)
    lost = {
        name: relative_error(x, float64_reference[name]) for name, x in _results(plain, hidden, weight, targets).items()
    }
    got = _results(fused, hidden.to(device), weight.to(device), targets.to(device))
    return [
        Finding(name, relative_error(x.cpu(), float64_reference[name]), allowed(lost[name], dtype))
        for name, x in got.items()
    ]


def _problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(CASE.tokens, CASE.key, generator=generator).to(dtype)
    weight = torch.randn(CASE.value, CASE.key, generator=generator).to(dtype)
    targets = torch.randint(CASE.value, (CASE.tokens,), generator=generator)
    targets[::7] = -100  # tokens that do not count
    return hidden, weight, targets


def _results(loss: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    value = loss(hidden, weight, targets)
    d_hidden, d_weight = torch.autograd.grad(value, (hidden, weight))
    return {"loss": value.detach(), "d hidden": d_hidden, "d weight": d_weight}
