"""The checks of `rms_norm` and `gated_unit`, which look at one row at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.ops.gated_unit import gated_unit
from hgrn2.ops.rms_norm import rms_norm
from hgrn2.testing.cases import Case
from hgrn2.testing.compare import Finding, allowed, relative_error


@dataclass(frozen=True)
class RowCheck:
    """An operator of x [B,T,channels] and a weight that it may not have."""

    NAME: str
    call: Callable[..., Tensor]
    CASE: Case
    weighted: bool
    DTYPES: tuple[torch.dtype, ...] = (torch.float64, torch.float32)

    def findings(self, device: torch.device, dtype: torch.dtype, backend: str) -> list[Finding]:
        """Output and gradients against plain PyTorch in float64; plain PyTorch in `dtype` says how far they may be."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.CASE.batch, self.CASE.tokens, self.CASE.value)
        tensors = [4 * torch.randn(shape, generator=generator, dtype=torch.float64)]
        tensors[0][0, :3] *= torch.tensor([0.0, 1e-4, 1e4]).double().unsqueeze(1)  # eps alone, mostly eps, huge
        if self.weighted:
            tensors.append(torch.randn(shape[2], generator=generator, dtype=torch.float64))
        tensors = [x.to(dtype) for x in tensors]
        reference = self._results([x.double() for x in tensors], "reference")
        lost = {name: relative_error(x, reference[name]) for name, x in self._results(tensors, "reference").items()}
        got = self._results([x.to(device) for x in tensors], backend)
        return [
            Finding(name, relative_error(x.cpu(), reference[name]), allowed(lost[name], dtype))
            for name, x in got.items()
        ]

    def _results(self, tensors: list[Tensor], backend: str) -> dict[str, Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        y = self.call(*leaves, backend=backend)
        wave = torch.arange(y.numel(), device=y.device, dtype=y.dtype).sin().view_as(y)
        grads = torch.autograd.grad((y * wave).sum(), leaves)
        return {"output": y.detach()} | {f"d {name}": grad for name, grad in zip(("x", "weight"), grads, strict=False)}


NORM = RowCheck("rms_norm", rms_norm, Case(op="rms_norm", tokens=300, heads=1, value=83), True)
"""300 tokens of 83 channels: whole vectors and a rest, and more than one sum over rows."""
UNIT = RowCheck("gated_unit", gated_unit, Case(op="gated_unit", tokens=70, heads=1, value=86), False)
