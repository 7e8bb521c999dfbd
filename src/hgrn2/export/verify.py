"""An exported graph held to the float64 model with the same weights, before anyone gets to see it.

Tokens are read the way a program reads them: a prompt, another piece of it, then one by one, with the state carried.
The reference reads them at once in float64. How far the graph may lie off is a multiple of how far PyTorch's own
float32 lies off when it reads the same pieces; nothing is typed in but the multiple.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.export.language import Matrices
from hgrn2.export.runtime import Session
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading

PIECES = (17, 6, 1, 1, 1, 1)
"""Lengths of the calls: an odd prompt, a second piece, steps."""
BATCH = 2
FACTOR = 4.0
"""How many times PyTorch's float32 loss the graph may lose; docs/onnx.md has what was measured."""
FLOOR = 8.0
"""What it may lose besides, in float32 epsilons: where PyTorch's rounding happens to be lucky."""
ROUNDING_FACTOR = 3.0
"""How many times the emulated loss of 8-bit activations a graph that rounds them may lose."""

EMULATIONS = 4
NOISE = 1e-6
"""Relative, of what float32 has lost where activations are rounded."""


@dataclass(frozen=True)
class Check:
    """One result of the graph beside the float64 reference."""

    what: str
    error: float
    """||graph - reference|| / ||reference||"""
    largest: float
    """Of the differences."""
    torch_error: float
    """The same as `error`, of what sets the tolerance."""
    allowed: float

    @property
    def ok(self) -> bool:
        """False too where the error is not a number."""
        return self.error <= self.allowed


Results = dict[str, np.ndarray]


def dequantized(model: LanguageModel, matrices: Matrices) -> LanguageModel:
    """A copy of the model in float64 on the CPU with the matrices that the graph really multiplies with."""
    twin = copy.deepcopy(model).cpu()
    with torch.no_grad():
        parameters = dict(twin.named_parameters())
        for name, packed in matrices.quantized.items():
            parameters[name].copy_(torch.from_numpy(packed.dequantized()))
    return twin.double().eval()


def verify(session: Session, reference: LanguageModel, seed: int = 0) -> list[Check]:
    """Compare a graph that rounds no activations with the float64 `reference`; more than allowed is a `UserError`."""
    tokens = _tokens(reference, seed)
    want = _by_torch(reference, tokens, (tokens.shape[1],))
    plain = _by_torch(copy.deepcopy(reference).float(), tokens, PIECES)
    got = _by_graph(session, tokens)
    floor = FLOOR * float(np.finfo(np.float32).eps)
    return _judged([
        _check(name, got[name], want[name], loss := _relative(plain[name], want[name]), FACTOR * loss + floor)
        for name in want
    ])  # fmt: skip


def verify_rounded(
    session: Session, reference: LanguageModel, quantized: Sequence[str], block: int, seed: int = 0
) -> list[Check]:
    """The same for a graph whose quantised products round their activations to 8 bits, a scale for each `block`.

    The tolerance is a multiple of what that rounding costs when it is emulated in float64 before the same products. A
    number between two levels may fall to either side, by a float32 rounding before it, and where gates are steep much
    follows from it: so the largest cost of several emulations counts, that differ by such roundings only.
    """
    tokens = _tokens(reference, seed)
    want = _by_torch(reference, tokens, (tokens.shape[1],))
    emulated = []
    for turn in range(EMULATIONS):
        with _rounded(reference, quantized, block, torch.Generator().manual_seed(turn)):
            emulated.append(_by_torch(reference, tokens, (tokens.shape[1],)))
    got = _by_graph(session, tokens)
    floor = FLOOR * float(np.finfo(np.float32).eps)
    return _judged([
        _check(name, got[name], want[name], loss := max(_relative(each[name], want[name]) for each in emulated),
               ROUNDING_FACTOR * loss + floor)
        for name in want
    ])  # fmt: skip


def _judged(checks: list[Check]) -> list[Check]:
    worst = max(checks, key=lambda check: check.error / check.allowed if math.isfinite(check.error) else math.inf)
    if not worst.ok:
        raise UserError(
            f"the exported graph is wrong and was not kept: {worst.what} is {worst.error:.3g} off, "
            f"{worst.allowed:.3g} is allowed"
        )
    return checks


def _tokens(model: LanguageModel, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (BATCH, sum(PIECES)), generator=generator)


def _by_torch(model: LanguageModel, tokens: Tensor, pieces: Sequence[int]) -> Results:
    """Logits of every position and the states after the last one, by the names of the graph's inputs."""
    logits, state = [], model.zeros(tokens.shape[0])
    with reading(model):
        for part in tokens.split(list(pieces), 1):
            features, state = model.hidden(part, state)
            assert state is not None
            logits.append(_logits(model, features))
        states = {f"past.{name}": tensor.numpy() for name, tensor in state.tensors().items()}
    return {"logits": torch.cat(logits, 1).numpy(), **states}


def _by_graph(session: Session, tokens: Tensor) -> Results:
    logits, state = [], session.zeros(tokens.shape[0])
    for part in tokens.split(list(PIECES), 1):
        found, state = session(part.numpy(), state, keep=0)
        logits.append(found)
    return {"logits": np.concatenate(logits, 1), **state}


def _check(what: str, got: np.ndarray, want: np.ndarray, loss: float, allowed: float) -> Check:
    if got.shape != want.shape:
        raise UserError(f"the exported graph is wrong and was not kept: {what} is {got.shape} instead of {want.shape}")
    largest = float(np.abs(got.astype(np.float64) - want).max())
    return Check(what.replace("past.", "state "), _relative(got, want), largest, loss, allowed)


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    distance = float(np.linalg.norm((got.astype(np.float64) - want).ravel()))
    size = float(np.linalg.norm(want.ravel()))
    return distance / size if size else (0.0 if distance == 0 else math.inf)


_HEAD_INPUT = "_rounded_head"


def _logits(model: LanguageModel, features: Tensor) -> Tensor:
    change: Callable[[Tensor], Tensor] | None = getattr(model, _HEAD_INPUT, None)
    return model.logits(features if change is None else change(features))


@contextmanager
def _rounded(model: LanguageModel, quantized: Sequence[str], block: int, generator: torch.Generator) -> Iterator[None]:
    """Round what goes into the named products while the context lasts; float32's rounding is added first."""

    def change(x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5
        return round_to_bytes(x * (1 + NOISE * noise), block)

    handles = []
    for name, module in model.backbone.named_modules(prefix="backbone"):
        if isinstance(module, nn.Linear) and f"{name}.weight" in quantized:
            handles.append(module.register_forward_pre_hook(lambda _, given: change(given[0])))
    head = "embedding.weight" if model.head is None else "head.weight"
    if head in quantized:  # a tied head is no module
        object.__setattr__(model, _HEAD_INPUT, change)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.__dict__.pop(_HEAD_INPUT, None)


def round_to_bytes(x: Tensor, block: int) -> Tensor:
    """x [...,K] in `block` neighbours that share a scale, each rounded to one of 255 levels."""
    size = x.shape[-1]
    blocks = nn.functional.pad(x, (0, -size % block)).unflatten(-1, (-1, block))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = (blocks / scale.where(scale > 0, torch.ones_like(scale))).round() * scale
    return rounded.flatten(-2)[..., :size]
