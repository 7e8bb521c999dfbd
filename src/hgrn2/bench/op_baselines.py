"""The baselines of the operators: PyTorch's causal attention, and flash-linear-attention's HGRN2.

They are not held to our tolerances, only to computing what they stand for: PEER_FACTOR times as far off is let pass,
and how far off they are is part of their rows.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

from hgrn2.bench.calls import Implementation, differentiable
from hgrn2.bench.problems import Setting, cut, dtype_of, two_heads
from hgrn2.bench.settings import parse_shape
from hgrn2.errors import UserError
from hgrn2.testing.cases import OPERATORS, Problem
from hgrn2.testing.compare import Finding, relative_error
from hgrn2.testing.evaluation import Results
from hgrn2.testing.large import Expected, compare, expect

BASELINE_FACTOR = 20.0
ATTENTION_TOKENS = 1024  # of the check of attention: its float64 scores need T x T numbers per head
ATTENTION_EPSILONS = 4.0  # of the dtype, float32 at least that of TF32's ten bits: it may be what the library takes


def sdpa(setting: Setting) -> Implementation:
    """Causal attention with as many heads of the same size, no projections on either side."""
    batch, tokens, width, head = parse_shape(setting.shape)
    generator = torch.Generator(setting.device).manual_seed(0)
    shape = (batch, width // head, tokens, head)
    draws = [torch.randn(shape, generator=generator, device=setting.device, dtype=dtype_of(setting.dtype))
             for _ in range(4)]  # fmt: skip
    tensors = {name: x.requires_grad_() for name, x in zip("qkv", draws[:3], strict=True)}
    forward, both, _ = differentiable(_attention, tensors, draws[3])

    def check() -> list[Finding]:
        few = {name: x.detach()[:2, :2, :ATTENTION_TOKENS].requires_grad_() for name, x in tensors.items()}
        return _attention_findings(few, draws[3][:2, :2, :ATTENTION_TOKENS])

    return Implementation(subject="sdpa", backend="torch", forward=forward, both=both, check=check)


def _attention(given: Mapping[str, Tensor]) -> Tensor:
    return scaled_dot_product_attention(given["q"], given["k"], given["v"], is_causal=True)


def _attention_findings(tensors: Mapping[str, Tensor], grad_output: Tensor) -> list[Finding]:
    wide = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    scores = (wide["q"] @ wide["k"].mT) * wide["q"].shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    want_output = scores.masked_fill(future, -torch.inf).softmax(-1) @ wide["v"]
    want = (want_output, *torch.autograd.grad(want_output, list(wide.values()), grad_output.double()))
    _, both, _ = differentiable(_attention, tensors, grad_output)
    allowed = ATTENTION_EPSILONS * max(torch.finfo(grad_output.dtype).eps, 2.0**-10)
    named = zip(("output", "d q", "d k", "d v"), both(), want, strict=True)
    return [Finding(name, relative_error(got, right), allowed) for name, got, right in named]


class Fla:
    """HGRN2's mixing core as flash-linear-attention computes it: needs the library, and a GPU.

    After `fla/layers/hgrn2.py` of version 0.6.0, from the three projections to o before the norm: swish of the
    queries, the lower bound applied to the logarithm of the gate (not in its first layer, which has none), the key
    1 - exp(g) rounded to the dtype of the inputs, `chunk_gla` with its default scale n^-1/2.
    """

    def __init__(self) -> None:
        try:
            swish = import_module("fla.modules.activations").swish
            chunk_gla = import_module("fla.ops.gla").chunk_gla
        except ImportError as missing:
            raise UserError(
                f"--against fla needs flash-linear-attention ({missing}): "
                "pip install --no-deps flash-linear-attention==0.6.0 fla-core==0.6.0 einops"
            ) from None
        self._swish: Callable[[Tensor], Tensor] = swish
        self._chunk_gla: Callable[..., tuple[Tensor, Any]] = chunk_gla

    def core(self, problem: Problem, expected: Callable[[], Expected], heads: int) -> Implementation:
        """From projections and lower bound; without a lower bound where γ is 0 everywhere, as in the layer."""
        given = {name: problem.tensors[name] for name in ("q", "f", "i")}
        lower_bound = problem.tensors["lower_bound"]
        if lower_bound is not None and bool(lower_bound.any()):
            given["lower_bound"] = lower_bound
        leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items() if x is not None}

        def run(tensors: Mapping[str, Tensor]) -> Tensor:
            return self._kernel(self._prepared(tensors, heads)).flatten(2)

        forward, both, results = differentiable(run, leaves, problem.grad_output)
        scale = (problem.grad_output.shape[2] // heads) ** -0.5

        def check() -> list[Finding]:
            return compare(expected(), _unscaled(cut(results(), heads), scale), BASELINE_FACTOR)

        return Implementation(subject="fla", backend="core", forward=forward, both=both, check=check)

    def kernel(self, problem: Problem, heads: int) -> Implementation:
        """`chunk_gla` alone, on what the core gives it."""
        given = {name: x for name, x in problem.tensors.items() if x is not None}
        with torch.no_grad():
            prepared = self._prepared(given, heads)
        leaves = {name: x.detach().requires_grad_() for name, x in prepared.items()}
        grad_output = problem.grad_output.unflatten(-1, (heads, -1))
        forward, both, results = differentiable(self._kernel, leaves, grad_output)

        def check() -> list[Finding]:
            whole = Problem(
                OPERATORS["gated_outer_scan"],
                {**{name: x.detach() for name, x in leaves.items()}, "state": None},
                {},
                grad_output,
                problem.grad_state,
            )
            scale = grad_output.shape[-1] ** -0.5
            return compare(expect(two_heads(whole, heads)), _unscaled(cut(results(), heads), scale), BASELINE_FACTOR)

        return Implementation(subject="fla", backend="kernel", forward=forward, both=both, check=check)

    def _prepared(self, tensors: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
        log_f = logsigmoid(tensors["f"])
        lower_bound = tensors.get("lower_bound")
        if lower_bound is not None and (lower_bound.requires_grad or bool(lower_bound.any())):
            log_f = torch.logaddexp(lower_bound.log(), torch.log1p(-lower_bound) + log_f)
        key = (1 - log_f.exp()).to(tensors["i"])
        made = {"q": self._swish(tensors["q"]), "k": key, "v": tensors["i"], "log_f": log_f}
        return {name: x.unflatten(-1, (heads, -1)) for name, x in made.items()}

    def _kernel(self, tensors: Mapping[str, Tensor]) -> Tensor:
        q, k, v, log_f = (tensors[name] for name in ("q", "k", "v", "log_f"))
        return self._chunk_gla(q=q, k=k, v=v, g=log_f, state_v_first=True)[0]


def _unscaled(results: Results, scale: float) -> Results:
    """Results of a core with scores times `scale` as those of one without: all of them are linear in it."""
    return {name: x / scale for name, x in results.items()}
