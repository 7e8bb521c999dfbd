"""How a function becomes an operator of PyTorch, which `torch.compile` keeps as one call."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.ops.backend import FORWARD_MODE, has_tangents

_LIBRARY = torch.library.Library("hgrn2", "FRAGMENT")


class Operator:
    """A function of tensors and plain options under the name torch.ops.hgrn2.NAME, which changes none of its tensors.

    As `torch.library.custom_op`, except that its first call does not import the compiler (1.3 s), and that the check of
    its outputs for memory shared with inputs is left to `torch.library.opcheck`.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = f"hgrn2::{name}"
        self._function = function
        self._untraced: Callable[..., Any] | None = None
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, self._run, "CompositeExplicitAutograd")
        self._call = getattr(torch.ops.hgrn2, name).default

    def __call__(self, *args: Any) -> Any:
        if has_tangents(*(x for x in args if isinstance(x, Tensor))):  # they would be dropped without a word
            raise UserError(f"{self.name} cannot serve this call: {FORWARD_MODE} backend='reference' alone")
        return self._call(*args)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator of the function that gives the outputs' shapes and dtypes."""
        return torch.library.register_fake(self.name, function, lib=_LIBRARY)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """As `torch.library.register_autograd`."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context, lib=_LIBRARY)

    def refuse_derivatives(self) -> None:
        """For the backward of an operator: its own derivatives are refused by name."""
        self.register_autograd(_refuse, setup_context=lambda ctx, inputs, output: None)

    def _run(self, *args: Any) -> Any:
        """The kernel. Where the compiler is in use, it must not look into this frame by itself."""
        if "torch._dynamo" not in sys.modules:
            return self._function(*args)
        if self._untraced is None:
            self._untraced = torch.compiler.disable(self._function)
        return self._untraced(*args)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator: make a function, whose annotations say its schema, the operator of this name."""
    return lambda function: Operator(name, function)


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise NotImplementedError("second derivatives are computed by backend='reference' alone")
