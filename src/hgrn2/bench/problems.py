"""The problems that operators are timed on: drawn on the device itself, in the dtype that is measured."""

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgrn2.bench.settings import parse_shape
from hgrn2.testing.cases import OPERATORS, Case, Problem
from hgrn2.testing.evaluation import Results

TAPS = 4  # of the convolution, as in published models
# Tensors of B x T x D numbers that have to be read and written at least: forward, and its backward besides. The
# backward of hgru2 reads the three projections and the output's gradient and writes three gradients.
PASSES_OVER_MEMORY = {"hgru2": (4, 7), "gated_outer_scan": (5, 9), "gated_scan": (3, 5), "causal_conv": (2, 3)}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One operator at one shape."""

    op: str
    shape: str
    """BxTxDxn."""
    lower_bound: float
    """γ of every channel; hgru2 only."""
    dtype: str
    device: str

    @property
    def heads(self) -> int:
        """D / n; the element-wise operators have none, but their channels are looked at in as many groups."""
        _, _, width, head = parse_shape(self.shape)
        return width // head

    def case(self, direction: str) -> dict[str, Any]:
        """What a row says was measured; `direction` is forward, fwd+bwd, …"""
        lower_bound = {"bound": self.lower_bound} if self.op == "hgru2" else {}
        return {"op": self.op, "pass": direction, "BxTxDxn": self.shape, "dtype": self.dtype, **lower_bound}

    def small(self, batch: int, tokens: int) -> Case:
        """A case of the contracts with the same heads and dtype, but at most this many sequences and tokens."""
        b, t, width, head = parse_shape(self.shape)
        lower_bound = "none" if self.op != "hgru2" else "high" if self.lower_bound >= 0.3 else "small"
        return Case(
            op=self.op,
            batch=min(b, batch),
            tokens=min(t, tokens),
            heads=min(width // head, 2),
            key=head,
            value=head,
            state=False,
            lower_bound=lower_bound,
            device=self.device,
        )

    def floor_bytes(self, direction: str) -> int:
        """The least traffic with memory: every input read once, every result written once."""
        batch, tokens, width, _ = parse_shape(self.shape)
        forward, backward = PASSES_OVER_MEMORY[self.op]
        passes = forward if direction == "forward" else forward + backward
        return passes * batch * tokens * width * dtype_of(self.dtype).itemsize


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype of this name."""
    return getattr(torch, name)


def draw(setting: Setting) -> Problem:
    """Gates from standard normal logits, no initial state, no gradient of the final state."""
    batch, tokens, width, head = parse_shape(setting.shape)
    generator = torch.Generator(setting.device).manual_seed(zlib.crc32(repr(setting).encode()))
    dtype = dtype_of(setting.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=setting.device, dtype=dtype)

    flat, split = (batch, tokens, width), (batch, tokens, width // head, head)
    sizes: tuple[int, ...] = (batch, width // head, head, head)
    output = flat
    options: dict[str, Any] = {}
    if setting.op == "hgru2":
        lower_bound = torch.full((width,), setting.lower_bound, device=setting.device)
        tensors = {"q": normal(*flat), "f": normal(*flat), "i": normal(*flat), "lower_bound": lower_bound}
        options = {"heads": width // head}
    elif setting.op == "gated_outer_scan":
        gates = torch.nn.functional.logsigmoid(normal(*split))
        tensors, output = {"q": normal(*split), "k": normal(*split), "v": normal(*split), "log_f": gates}, split
    elif setting.op == "gated_scan":
        tensors, sizes = {"x": normal(*flat), "f": normal(*flat).sigmoid()}, (batch, width)
    else:
        tensors, sizes = {"x": normal(*flat), "weight": normal(width, TAPS)}, (batch, TAPS - 1, width)
    return Problem(
        operator=OPERATORS[setting.op],
        tensors={**tensors, "state": None},
        options=options,
        grad_output=normal(*output),
        grad_state=torch.zeros(sizes, device=setting.device),
    )


def two_heads(problem: Problem, heads: int) -> Problem:
    """The problem's first and last head: heads do not see each other, so this much of the reference costs little."""
    chosen = {name: None if x is None else _cut(name, x, heads) for name, x in problem.tensors.items()}
    options = {**problem.options, "heads": len(_ends(heads))} if "heads" in problem.options else problem.options
    states = problem.grad_state
    if problem.operator.name in ("hgru2", "gated_outer_scan"):
        states = states[:, _ends(heads)]
    else:
        states = states.unflatten(-1, (heads, -1))[..., _ends(heads), :].flatten(-2)
    return Problem(problem.operator, chosen, options, _cut("output", problem.grad_output, heads), states)


def cut(results: Results, heads: int) -> Results:
    """The first and last head of outputs and gradients by name."""
    return {name: _cut(name.removeprefix("d "), x, heads) for name, x in results.items()}


def _ends(heads: int) -> list[int]:
    return sorted({0, heads - 1})


def _cut(name: str, x: Tensor, heads: int) -> Tensor:
    if name in ("lower_bound", "weight"):
        return x.unflatten(0, (heads, -1))[_ends(heads)].flatten(0, 1)
    if x.dim() == 4:
        return x[:, :, _ends(heads)]
    return x.unflatten(-1, (heads, -1))[..., _ends(heads), :].flatten(-2)
