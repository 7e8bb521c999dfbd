"""What every backend of every operator owes, as functions from a case to findings; they know nothing of pytest.

A contract takes (case, backend, dtype, operator) and returns findings; `compare.failures` says which are broken. The
results compared are the output, the final state and the gradient of every tensor argument. Tolerances are measured on
the spot: `evaluation.loss` is what the reference backend, a plain PyTorch loop over tokens, loses in the same dtype on
the same inputs against itself in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hgrn2.ops.backend import find
from hgrn2.testing.cases import OPERATORS, Case, Operator, Problem, build
from hgrn2.testing.compare import FLOOR, ONE_PRODUCT_FLOOR, Finding, allowed, different_bits, relative_error
from hgrn2.testing.evaluation import (
    Results,
    Tensors,
    differentiate,
    evaluate,
    float64_reference,
    leaves,
    loss,
    problem_of,
    run,
)
from hgrn2.testing.poison import poisoned


def near(case: Case, backend: str, dtype: torch.dtype, got: Results, want: Results, where: str = "") -> list[Finding]:
    """Every result of `got` lies within the measured tolerance of `want`."""
    lost = loss(case, dtype)
    lower_bound = build(case, dtype).tensors.get("lower_bound")
    floor = ONE_PRODUCT_FLOOR if find(case.op, backend).one_product(lower_bound) else FLOOR
    return [Finding(k + where, relative_error(x, want[k]), allowed(lost[k], x.dtype, floor)) for k, x in got.items()]


def identical(got: Results, want: Results, where: str = "") -> list[Finding]:
    """Every result of `got` equals `want` to the bit; the error is a count of values."""
    return [Finding(f"{k}{where}, values that differ", different_bits(x, want[k]), 0) for k, x in got.items()]


def matches_reference(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """Equals the float64 reference within a small multiple of what the plain loop loses."""
    return near(
        case, backend, dtype, evaluate(problem_of(case, dtype, operator), backend), float64_reference(case, dtype)
    )


def rounds_once(case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None) -> list[Finding]:
    """Inputs narrower than float32 give the bits of the float32 call on the same numbers, rounded at the very end."""
    problem = problem_of(case, dtype, operator)
    narrow, wide = evaluate(problem, backend), evaluate(problem.to(torch.float32), backend)
    return identical(narrow, {name: x.to(narrow[name].dtype) for name, x in wide.items()})


def _cuts(tokens: int) -> list[int]:
    """Where to split: the ends, the middle, and around a chunk's end."""
    return sorted({0, 1, tokens // 2, *(t for t in (63, 64, 65) if t < tokens), tokens - 1, tokens})


def split_equals_whole(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None, cuts: Sequence[int] | None = None
) -> list[Finding]:
    """Two calls with the state passed on equal one call, wherever the cut falls; gradients flow through the state."""
    problem = problem_of(case, dtype, operator)
    whole = evaluate(problem, backend)
    findings = []
    for cut in _cuts(case.tokens) if cuts is None else cuts:
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
    """`reverse=True` equals flipping the tokens, scanning forward and flipping the output; needs one document per
    row."""
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
        changed = x.clone()
        changed[:, tokens] = x.roll(1, 1)[:, tokens]
        tensors[name] = changed
    return replace(problem, tensors=tensors)


def future_does_not_leak(
    case: Case, backend: str, dtype: torch.dtype, operator: Operator | None = None
) -> list[Finding]:
    """Changing a token, or all from it on, keeps earlier outputs to the bit; and it does reach its own output."""
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
    """Outputs share no memory with inputs or each other; forward and backward leave all that they read as it was."""
    problem = problem_of(case, dtype, operator)
    tensors = leaves(problem)
    incoming = replace(problem, grad_output=problem.grad_output.clone(), grad_state=problem.grad_state.clone())
    output, state = run(problem, backend, tensors)
    differentiate(incoming, tensors, output, state)
    now = {**tensors, "the output's gradient": incoming.grad_output, "the state's gradient": incoming.grad_state}
    before = (*problem.tensors.values(), problem.grad_output, problem.grad_state)
    findings, taken = [], set()
    for (name, x), y in zip(now.items(), before, strict=True):
        if x is not None and y is not None:
            findings.append(Finding(f"values of {name} that were changed", different_bits(x, y), 0))
            taken |= {x.untyped_storage().data_ptr()} if x.numel() else set()
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


Contract = Callable[..., list[Finding]]
_ANY: tuple[Contract, ...] = (
    matches_reference,
    repeats_bitwise,
    writes_all_its_memory,
    outputs_are_fresh,
    layout_does_not_matter,
)


def contracts_for(case: Case, dtype: torch.dtype) -> dict[str, Contract]:
    """The contracts that say something about a case, by name."""
    chosen = list(_ANY)
    if torch.finfo(dtype).bits < 32:
        chosen.append(rounds_once)
    if case.lengths:
        chosen += [packed_equals_separate, documents_do_not_mix]
    elif case.tokens > 2:
        chosen += [split_equals_whole, future_does_not_leak]
        if not dict(case.options).get("reverse", False):
            chosen.append(steps_equal_whole)
            chosen += [reverse_equals_flipped] if OPERATORS[case.op].reversible else []
    return {contract.__name__: contract for contract in chosen}
