"""Modules without memory for their weights, which come from a file."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Unmade(TorchFunctionMode):
    """Inside it, modules are made on the meta device, and initial values are not drawn.

    They would be lost anyhow, and drawing normal numbers on that device imports PyTorch's compiler, 1.3 s of it.
    """

    def __enter__(self) -> "Unmade":
        self._device = torch.device("meta")
        self._device.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._device.__exit__(*raised)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
