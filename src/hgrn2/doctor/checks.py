"""What is checked: every operator's output, state and gradients, and its step, on every backend that serves here.

The reference is the float64 token loop on the CPU, whatever device is checked; how far a result may be from it is
measured, as in the contracts (`hgrn2.testing`).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrn2.doctor import loss, selective
from hgrn2.doctor.rowwise import NORM, UNIT
from hgrn2.ops import backend as backends
from hgrn2.testing.cases import Case, build, packed
from hgrn2.testing.compare import Finding
from hgrn2.testing.contracts import near
from hgrn2.testing.evaluation import evaluate, float64_reference
from hgrn2.testing.large import Expected, compare, expect

OPS = tuple(op for op in backends.REGISTRY if op not in backends.STEPS.values())
STEPS = 9
"""Tokens that are stepped through one by one."""
_OWN: dict[str, Any] = {one.NAME: one for one in (loss, selective, NORM, UNIT)}
"""Operators that have no cases in common with the others, and the modules that check them."""
DOCUMENTS = (0, 1, 70, 0, 5, 20)
_LOW, _HALF, _FULL, _DOUBLE = torch.bfloat16, torch.float16, torch.float32, torch.float64
_BOTH, _ALL = (_LOW, _FULL), (_LOW, _DOUBLE, _FULL)


class Planned(NamedTuple):
    """A case, its dtypes on a GPU and on the CPU.

    On a GPU every further dtype of a case is a further set of kernels to compile, so most cases have one only;
    float16 models are not trained on a CPU, double precision is checked in its stead.
    """

    case: Case
    gpu: tuple[torch.dtype, ...]
    cpu: tuple[torch.dtype, ...]


# Together: raw gates from 0 to 1, every lower bound, both directions, packed documents with empty ones, more than one
# chunk and more than one segment, the head sizes of published models and an odd one.
_CASES = (
    Planned(
        Case(op="hgru2", batch=1, tokens=70, heads=1, key=128, value=128, gates="wide", lower_bound="mixed"),
        (_LOW,),
        _ALL,
    ),
    Planned(
        packed(Case(op="hgru2", heads=1, key=64, value=64, gates="extremes", lower_bound="small"), DOCUMENTS),
        (_LOW,),
        _BOTH,
    ),
    Planned(
        Case(op="hgru2", tokens=131, key=16, value=24, lower_bound="high", options=(("reverse", True),)),
        (_FULL, _HALF),
        _BOTH,
    ),
    Planned(Case(op="hgru2", tokens=21, heads=9, key=4, value=4, lower_bound="small"), (_LOW,), (_FULL,)),
    Planned(Case(op="hgru2", tokens=21, heads=9, key=2, value=2, gates="wide", lower_bound="mixed"), (), _BOTH),
    Planned(Case(op="gated_outer_scan", batch=1, tokens=131, heads=1, key=64, value=32, gates="wide"), (_LOW,), _BOTH),
    Planned(packed(Case(op="gated_outer_scan", key=16, value=16, state=False), DOCUMENTS), (_FULL,), (_FULL,)),
    Planned(Case(op="gated_scan", tokens=131, key=40), (_LOW, _HALF, _FULL), _ALL),
    Planned(packed(Case(op="gated_scan", complex=True, options=(("reverse", True),)), DOCUMENTS), (_FULL,), (_FULL,)),
    Planned(Case(op="causal_conv", tokens=65, key=40), _BOTH, _BOTH),
    Planned(packed(Case(op="causal_conv"), DOCUMENTS), (_FULL,), (_FULL,)),
)


@dataclass(frozen=True)
class Check:
    """One case of one operator on one backend."""

    op: str
    """The name of the public function, a step included."""
    backend: str
    device: torch.device
    dtype: torch.dtype
    case: Case

    def run(self) -> list[Finding]:
        """How far every result is from the reference, and how far it may be."""
        if self.op in _OWN:
            return _OWN[self.op].findings(self.device, self.dtype, self.backend)
        stepped = self.op in backends.STEPS.values()
        results = self._stepped() if stepped else self._whole()
        got = {name: x.cpu() for name, x in results.items()}
        findings = near(self.case, self.backend, self.dtype, got, float64_reference(self.case, self.dtype))
        if not stepped and torch.finfo(self.dtype).bits < 32:
            findings += compare(_expected(self.case, self.dtype), got)
        return findings

    def _whole(self) -> dict[str, Tensor]:
        return evaluate(build(self.case, self.dtype).on(self.device), self.backend)

    def _stepped(self) -> dict[str, Tensor]:
        problem = build(self.case, self.dtype).on(self.device)
        tensors, outputs = dict(problem.tensors), []
        state = tensors.pop("state")
        names = problem.operator.per_token
        for t in range(self.case.tokens):
            token = {name: x[:, t] if x is not None and name in names else x for name, x in tensors.items()}
            output, state = problem.operator.step(**token, state=state, **problem.options, backend=self.backend)
            outputs.append(output)
        assert state is not None
        return {"output": torch.stack(outputs, 1), "state": state}

    def __str__(self) -> str:
        kind = str(self.dtype.to_complex() if self.case.complex else self.dtype).removeprefix("torch.")
        return f"{self.op} in {kind} on {self.backend}"


@functools.lru_cache(maxsize=64)
def _expected(case: Case, dtype: torch.dtype) -> Expected:
    """A narrower tolerance for 16-bit inputs: what a token loop with 16-bit states loses would hide a lot."""
    return expect(build(case, dtype))


def planned(devices: list[torch.device], ops: tuple[str, ...] = OPS) -> list[Check]:
    """All checks of the operators on the devices, one backend after the other."""
    return [check for device in devices for op in ops for check in _of_operator(op, device)]


def _of_operator(op: str, device: torch.device) -> Iterator[Check]:
    gpu = device.type == "cuda"
    cases = [(row.case, row.gpu if gpu else row.cpu) for row in _CASES if row.case.op == op]
    cases = cases or [(_OWN[op].CASE, _OWN[op].DTYPES)]
    step = backends.STEPS.get(op, "")
    short = replace(cases[0][0], tokens=STEPS, lower_bound="small" if op == "hgru2" else "none")
    kinds = tuple(dict.fromkeys(kind for _, dtypes in cases for kind in dtypes))
    for backend in backends.REGISTRY[op]:
        for name, case, dtypes in [*((op, *row) for row in cases), *([(step, short, kinds)] if step else [])]:
            served = [kind for kind in dtypes if _serves(backend, call_of(name, device, kind, case))]
            yield from (Check(name, backend.name, device, kind, case) for kind in served)


def call_of(op: str, device: torch.device, dtype: torch.dtype, case: Case) -> backends.Call:
    """The call of an operator or a step that a case is."""
    keys, values = (case.key, case.value) if case.op in ("hgru2", "gated_outer_scan") else (0, 0)
    kind = dtype.to_complex() if case.complex else dtype
    state = backends.work_dtype(kind) if op in backends.STEPS.values() else None
    return backends.Call(op, device, kind, keys, values, state)


def _serves(backend: backends.Backend, call: backends.Call) -> bool:
    return backend in backends.REGISTRY[call.op] and backend.examined(call) and backend.supports(call)[0]
