"""The check of `selective_scan`, whose tensors are unlike those of the other scans."""

import torch
from torch import Tensor

from hgrn2.ops.selective_scan import reference, selective_scan
from hgrn2.testing.cases import Case
from hgrn2.testing.compare import Finding, allowed, relative_error

NAME = "selective_scan"
CASE = Case(op=NAME, tokens=70, heads=1, key=16, value=40)
"""70 tokens of 40 channels, whose states have 16 numbers."""
DTYPES = (torch.bfloat16, torch.float32)


def findings(device: torch.device, dtype: torch.dtype, backend: str) -> list[Finding]:
    """Outputs, states and gradients against the float64 loop; the loop in `dtype` says how far they may be."""
    tensors = _problem(dtype)
    float64_reference = _results([x.double() for x in tensors], "")
    lost = {name: relative_error(x, float64_reference[name]) for name, x in _results(tensors, "").items()}
    got = _results([x.to(device) for x in tensors], backend)
    return [
        Finding(name, relative_error(x.cpu(), float64_reference[name]), allowed(lost[name], dtype))
        for name, x in got.items()
    ]


def _problem(dtype: torch.dtype) -> list[Tensor]:
    """x, Δ with steps of nothing and large ones, a, w, r and a state."""
    generator = torch.Generator().manual_seed(0)
    batch, tokens, channels, count = CASE.batch, CASE.tokens, CASE.value, CASE.key
    x = torch.randn(batch, tokens, channels, generator=generator)
    step = torch.exp(3 * torch.randn(batch, tokens, channels, generator=generator) - 3)
    step = step.masked_fill(torch.rand(batch, tokens, 1, generator=generator) < 0.1, 0)
    decay = -torch.arange(1.0, count + 1).expand(channels, count).contiguous()
    write, read = torch.randn(2, batch, tokens, count, generator=generator)
    state = torch.randn(batch, channels, count, generator=generator)
    return [x.to(dtype), step, decay, write.to(dtype), read.to(dtype), state]


def _results(tensors: list[Tensor], backend: str) -> dict[str, Tensor]:
    """Of a backend, or of the loop where none is named."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    if backend:
        y, final = selective_scan(*leaves[:5], state=leaves[5], backend=backend)
        assert final is not None
    else:
        x, step, decay, write, read, state = leaves
        y, final = reference.selective_scan(x, step, decay, write, read, state, None)
    wave = torch.arange(y.numel(), device=y.device, dtype=final.dtype).sin().view_as(y)
    loss = (y.to(final.dtype) * wave).sum() + final.sin().sum()
    names = ("x", "step", "decay", "write", "read", "state")
    grads = torch.autograd.grad(loss, leaves)
    found = {"output": y.detach(), "final state": final.detach()}
    return found | {f"d {name}": grad for name, grad in zip(names, grads, strict=True)}
