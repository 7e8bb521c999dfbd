"""PyTorch's optimisers without the compiler, which their first call imports (3.5 s of a processor) to leave them alone.

`torch.optim` marks the methods that torch.compile must not trace; the mark imports torch._dynamo when such a method is
first called. Nothing here is traced: compiled are models, not optimisers. Where a version of torch has no unmarked
method underneath, the marked one is used.
"""

from typing import Any

import torch


def _unmarked(function: Any) -> Any:
    return getattr(function, "__wrapped__", function)


class Light(torch.optim.Optimizer):
    """An optimiser whose bookkeeping does not ask for the compiler; to be named before the class that steps."""

    add_param_group = _unmarked(torch.optim.Optimizer.add_param_group)
    zero_grad = _unmarked(torch.optim.Optimizer.zero_grad)


class AdamW(Light, torch.optim.AdamW):
    """`torch.optim.AdamW`: the same numbers, states and checkpoints; never differentiable."""

    _step = staticmethod(_unmarked(torch.optim.AdamW.step))

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        with torch.no_grad():
            self._step(self, closure)
