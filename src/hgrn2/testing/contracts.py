"""What every backend of every operator owes, as functions from a case to findings; they know nothing of pytest.

A contract takes (case, backend, dtype, operator) and returns findings; `compare.failures` says which are broken. The
results compared are the output, the final state and the gradient of every tensor argument. Tolerances are measured on
the spot: `loss` is what the reference backend, a plain PyTorch loop over tokens, loses in the same dtype on the same
inputs against itself in float64.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hgrn2.ops.hgru2.chunked import one_product
from hgrn2.testing.cases import Case, Operator, Problem, build
from hgrn2.testing.compare import FLOOR, ONE_PRODUCT_FLOOR, Finding, allowed, different_bits, relative_error
from hgrn2.testing.poison import poisoned

Tensors = dict[str, Tensor | None]
Results = dict[str, Tensor]
"""`output`, `state`, and `d NAME` for the gradient of each tensor argument."""


def run(problem: Problem, backend: str, tensors: Tensors | None = None) -> tuple[Tensor, Tensor]:
    """(output, final state) of a problem, or of other tensors with its options."""
    chosen = problem.tensors if tensors is None else tensors
    packing = {} if problem.cu_seqlens is None else {"cu_seqlens": problem.cu_seqlens}
    output, state = problem.operator.run(**chosen, **packing, **problem.options, backend=backend)
    assert state is not None
    return output, state


def leaves(problem: Problem) -> Tensors:
    """The tensors of a problem as fresh leaves that collect gradients."""
    return {k: None if x is None else x.detach().clone().requires_grad_() for k, x in problem.tensors.items()}


def differentiate(problem: Problem, tensors: Tensors, output: Tensor, state: Tensor) -> Results:
    """Results with the gradients of `tensors` for the problem's gradients of output and state."""
    named = {name: x for name, x in tensors.items() if x is not None}
    ends = [(x, g) for x, g in ((output, problem.grad_output), (state, problem.grad_state)) if x.requires_grad]
    found = torch.autograd.grad(
        [x for x, _ in ends], list(named.values()), [g for _, g in ends], allow_unused=True, materialize_grads=True
    )
    grads = {f"d {name}": g for name, g in zip(named, found, strict=True)}
    return {"output": output.detach(), "state": state.detach()} | grads


def evaluate(problem: Problem, backend: str) -> Results:
    """Output, final state and all gradients on a backend."""
    tensors = leaves(problem)
    return differentiate(problem, tensors, *run(problem, backend, tensors))


@functools.lru_cache(maxsize=64)
def truth(case: Case, dtype: torch.dtype) -> Results:
    """The reference in float64 on the inputs as rounded to `dtype`."""
    results = evaluate(build(case, dtype).to(torch.float64), "reference")
    assert all(x.isfinite().all() for x in results.values()), f"the float64 reference is not finite for {case}"
    return results


@functools.lru_cache(maxsize=64)
def loss(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """What the plain token loop in `dtype` loses against the truth, for each result.

    In float64 the loop is the truth and cannot be measured against itself: it loses as many epsilons as in float32.
    """
    if dtype == torch.float64:
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        return {name: ratio * lost for name, lost in loss(case, torch.float32).items()}
    results = evaluate(build(case, dtype), "reference")
    return {name: relative_error(x, truth(case, dtype)[name]) for name, x in results.items()}


def problem_of(case: Case, dtype: torch.dtype, operator: Operator | None) -> Problem:
    """The case's problem, for the given operator in place of its own (a test of the contracts passes a broken one)."""
    problem = build(case, dtype)
    return problem if operator is None else replace(problem, operator=operator)


def near(case: Case, backend: str, dtype: torch.dtype, got: Results, want: Results, where: str = "") -> list[Finding]:
    """Every result of `got` lies within the measured tolerance of `want`."""
    lost = loss(case, dtype)
    bound = build(case, dtype).tensors.get("lower_bound")
    floor = ONE_PRODUCT_FLOOR if backend == "chunked" and one_product(bound) else FLOOR
    return [Finding(k + where, relative_error(x, want[k]), allowed(lost[k], x.dtype, floor)) for k, x in got.items()]


def identical(got: Results, want: Results, where: str = "") -> list[Finding]:
    """Every result of `got` equals `want` to the bit; the error is a count of values."""
    return [Finding(f"{k}{where}, values that differ", different_bits(x, want[k]), 0) for k, x in got.items()]


def matches_reference(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """Equals the float64 truth within a small multiple of what the plain loop loses."""
    return near(case, backend, dtype, evaluate(problem_of(case, dtype, operator), backend), truth(case, dtype))


def rounds_once(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """Inputs narrower than float32 give the bits of the float32 call on the same numbers, rounded at the very end."""
    problem = problem_of(case, dtype, operator)
    narrow, wide = evaluate(problem, backend), evaluate(problem.to(torch.float32), backend)
    return identical(narrow, {name: x.to(narrow[name].dtype) for name, x in wide.items()})


def _cuts(tokens: int) -> list[int]:
    """Where to split: the ends, the middle, and around a chunk's end."""
    return sorted({0, 1, tokens // 2, *(t for t in (63, 64, 65) if t < tokens), tokens - 1, tokens})


def split_equals_whole(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """Two calls with the state passed on equal one call, wherever the cut falls; gradients flow through the state."""
    problem = problem_of(case, dtype, operator)
    whole = evaluate(problem, backend)
    findings = []
    for cut in _cuts(case.tokens):
        tensors = leaves(problem)
        pieces = [slice(0, cut), slice(cut, case.tokens)]
        backward = problem.options.get("reverse", False)
        outputs, state = [], tensors["state"]
        for piece in reversed(pieces) if backward else pieces:
            output, state = run(problem, backend, {**_tokens(problem, tensors, piece), "state": state})
            outputs.append(output)
        assert state is not None
        joined = torch.cat(outputs[::-1] if backward else outputs, 1)
        got = differentiate(problem, tensors, joined, state)
        findings += near(case, backend, dtype, got, whole, f" cut at {cut}")
    return findings


def _tokens(problem: Problem, tensors: Tensors, piece: slice | int) -> Tensors:
    """The tensors with only some tokens; an integer drops the token axis."""
    names = problem.operator.per_token
    return {name: x[:, piece] if x is not None and name in names else x for name, x in tensors.items()}


def steps_equal_whole(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """One token at a time equals the whole sequence: outputs and the final state."""
    problem = problem_of(case, dtype, operator)
    with torch.no_grad():
        whole_output, whole_state = run(problem, backend)
    state = problem.tensors["state"]
    state = torch.zeros_like(whole_state) if state is None else state
    outputs = []
    for t in range(case.tokens):
        tensors = {**_tokens(problem, problem.tensors, t), "state": state}
        output, state = problem.operator.step(**tensors, **problem.options, backend=backend)
        outputs.append(output)
    got = {"output": torch.stack(outputs, 1), "state": state}
    return near(case, backend, dtype, got, {"output": whole_output, "state": whole_state})


def packed_equals_separate(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None
) -> list[Finding]:
    """Packed documents equal calls of their own, final states and gradients included; needs `lengths`."""
    problem = problem_of(case, dtype, operator)
    alone, tensors = replace(problem, cu_seqlens=None), leaves(problem)
    outputs, states = [], []
    begin = 0
    for n, length in enumerate(case.lengths):
        state = tensors["state"]
        cut = {
            **_tokens(problem, tensors, slice(begin, begin + length)),
            "state": None if state is None else state[n, None],
        }
        output, state = run(alone, backend, cut)
        outputs.append(output)
        states.append(state)
        begin += length
    separate = differentiate(problem, tensors, torch.cat(outputs, 1), torch.cat(states))
    return near(case, backend, dtype, evaluate(problem, backend), separate)


def reverse_equals_flipped(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None
) -> list[Finding]:
    """`reverse=True` equals flipping the tokens, scanning forward and flipping the output; needs one document a row."""
    problem = problem_of(case, dtype, operator)
    backward = replace(problem, options={**problem.options, "reverse": True})
    forward = replace(problem, options={**problem.options, "reverse": False})
    tensors = leaves(problem)
    names = problem.operator.per_token
    flipped = {name: x.flip(1) if x is not None and name in names else x for name, x in tensors.items()}
    output, state = run(forward, backend, flipped)
    want = differentiate(problem, tensors, output.flip(1), state)
    return near(case, backend, dtype, evaluate(backward, backend), want)


def _changed(problem: Problem, tokens: slice) -> Problem:
    """The problem with those tokens replaced by their neighbours' values."""
    tensors = dict(problem.tensors)
    for name in problem.operator.per_token:
        x = problem.tensors[name]
        assert x is not None
        tensors[name] = x.clone()
        tensors[name][:, tokens] = x.roll(1, 1)[:, tokens]
    return replace(problem, tensors=tensors)


def future_does_not_leak(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None
) -> list[Finding]:
    """Changing a token, or all from it on, leaves earlier outputs the same to the bit, and does reach its own output."""
    problem = problem_of(case, dtype, operator)
    backward = problem.options.get("reverse", False)
    output, _ = run(problem, backend)
    findings = []
    for t in {1, 20, 62, 63, 64, case.tokens - 2} & set(range(1, case.tokens - 1)):
        earlier, later = (slice(t + 1, None), slice(0, t + 1)) if backward else (slice(0, t), slice(t, None))
        for tokens in (slice(t, t + 1), later):
            moved, _ = run(_changed(problem, tokens), backend)
            count = different_bits(moved[:, earlier], output[:, earlier])
            findings.append(Finding(f"outputs before token {t} that moved", count, 0))
            still = different_bits(moved[:, t], output[:, t]) == 0
            findings.append(Finding(f"token {t} does not reach its own output", still, 0))
    return findings


def documents_do_not_mix(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None
) -> list[Finding]:
    """Changing one packed document leaves outputs and states of all others the same to the bit; needs `lengths`."""
    problem = problem_of(case, dtype, operator)
    output, state = run(problem, backend)
    findings = []
    begin = 0
    for n, length in enumerate(case.lengths):
        inside = slice(begin, begin + length)
        moved, moved_state = run(_changed(problem, inside), backend)
        for x, y in ((output, moved), (state[:n], moved_state[:n]), (state[n + 1 :], moved_state[n + 1 :])):
            y = torch.cat((y[:, :begin], x[:, inside], y[:, begin + length :]), 1) if x is output else y
            findings.append(Finding(f"values that moved with document {n}", different_bits(y, x), 0))
        begin += length
    return findings


def repeats_bitwise(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """The same inputs twice give the same bits, gradients included."""
    problem = problem_of(case, dtype, operator)
    return identical(evaluate(problem, backend), evaluate(problem, backend))


def writes_all_its_memory(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None
) -> list[Finding]:
    """With fresh memory full of NaN the results are the same to the bit."""
    problem = problem_of(case, dtype, operator)
    clean = evaluate(problem, backend)
    with poisoned():
        return identical(evaluate(problem, backend), clean)


def outputs_are_fresh(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """Outputs share no memory with inputs or with each other, and inputs keep their values."""
    problem = problem_of(case, dtype, operator)
    before = {name: x.clone() for name, x in problem.tensors.items() if x is not None}
    evaluate(problem, backend)
    output, state = run(problem, backend)
    findings = []
    for name, x in before.items():
        findings.append(Finding(f"values of {name} that were changed", different_bits(problem.tensors[name], x), 0))
    taken = {x.untyped_storage().data_ptr() for x in problem.tensors.values() if x is not None and x.numel()}
    for name, x in (("output", output), ("state", state)):
        place = x.untyped_storage().data_ptr()
        findings.append(Finding(f"{name} shares memory", x.numel() > 0 and place in taken, 0))
        taken.add(place)
    return findings


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice of a fused projection": lambda x: torch.cat((x + 1, x, x - 1), -1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "tokens before batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels before tokens": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "every second channel": lambda x: torch.stack((x, -x), -1)[..., 0],
    "lazy conjugate": lambda x: x.conj().resolve_conj().conj(),
}


def layout_does_not_matter(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None
) -> list[Finding]:
    """Views of any layout, incoming gradients included, give what contiguous tensors give."""
    problem = problem_of(case, dtype, operator)
    want = evaluate(problem, backend)
    findings = []
    for name, layout in LAYOUTS.items():
        tensors = leaves(problem)
        arranged = {k: x if x is None or x.dim() < 2 else layout(x) for k, x in tensors.items()}
        incoming = replace(problem, grad_output=layout(problem.grad_output), grad_state=layout(problem.grad_state))
        got = differentiate(incoming, tensors, *run(problem, backend, arranged))
        findings += near(case, backend, dtype, got, want, f" ({name})")
    return findings
