"""The contracts themselves: each one fails on an operator broken in the way that it is there to see."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.testing import contracts
from hgrn2.testing.cases import OPERATORS, Case, packed
from hgrn2.testing.compare import Finding, allowed, different_bits, failures, relative_error
from hgrn2.testing.poison import poisoned

DENSE = Case(op="hgru2", tokens=70, lower_bound="small", key=3, value=5)
PACKED = packed(replace(DENSE, tokens=9), (2, 0, 3, 4))
Outputs = tuple[Tensor, Tensor | None]


def slightly_wrong(**call: Any) -> Outputs:
    output, state = ops.hgru2(**call)
    return output * (1 + 1e-5), state


def wrong_gradient(**call: Any) -> Outputs:
    return ops.hgru2(**{**call, "f": 0.999 * call["f"] + 0.001 * call["f"].detach()})


def low_precision_inside(**call: Any) -> Outputs:
    return ops.hgru2(**{**call, "backend": "reference"})


def forgets_the_state(**call: Any) -> Outputs:
    return ops.hgru2(**{**call, "state": None if call["state"] is None else 0 * call["state"]})


def forgets_reverse(**call: Any) -> Outputs:
    return ops.hgru2(**{**call, "reverse": False})


def forgets_boundaries(**call: Any) -> Outputs:
    if (ends := call.pop("cu_seqlens", None)) is None:
        return ops.hgru2(**call)
    first = call.pop("state")
    output, state = ops.hgru2(**call, state=first[:1])
    return output, state.expand(ends.numel() - 1, -1, -1, -1).clone()


def looks_ahead(**call: Any) -> Outputs:
    output, state = ops.hgru2(**call)
    return output + 1e-6 * call["i"].mean(1, keepdim=True), state


def ignores_the_last_token(**call: Any) -> Outputs:
    output, state = ops.hgru2(**call)
    return torch.cat((output[:, :1], output[:, :-1]), 1), state


def draws_lots(**call: Any) -> Outputs:
    output, state = ops.hgru2(**call)
    return output + 1e-12 * torch.rand_like(output), state


def leaves_memory_unwritten(**call: Any) -> Outputs:
    output, state = ops.hgru2(**call)
    return output + 0 * torch.empty_like(output), state


def returns_its_input(**call: Any) -> Outputs:
    return ops.hgru2(**call)[0], call["state"].detach()


def writes_to_its_input(**call: Any) -> Outputs:
    results = ops.hgru2(**call)
    call["q"].data.mul_(2)
    return results


def ignores_strides(**call: Any) -> Outputs:
    i = call["i"]
    return ops.hgru2(**{**call, "i": i.as_strided(i.shape, (i.shape[1] * i.shape[2], i.shape[2], 1))})


BROKEN = [
    (contracts.matches_reference, slightly_wrong, DENSE),
    (contracts.matches_reference, wrong_gradient, DENSE),
    (contracts.matches_reference, forgets_the_state, DENSE),
    (contracts.split_equals_whole, forgets_the_state, DENSE),
    (contracts.steps_equal_whole, forgets_the_state, DENSE),
    (contracts.packed_equals_separate, forgets_boundaries, PACKED),
    (contracts.documents_do_not_mix, forgets_boundaries, PACKED),
    (contracts.reverse_equals_flipped, forgets_reverse, DENSE),
    (contracts.future_does_not_leak, looks_ahead, DENSE),
    (contracts.future_does_not_leak, ignores_the_last_token, DENSE),
    (contracts.repeats_bitwise, draws_lots, DENSE),
    (contracts.writes_all_its_memory, leaves_memory_unwritten, DENSE),
    (contracts.outputs_are_fresh, returns_its_input, DENSE),
    (contracts.outputs_are_fresh, writes_to_its_input, DENSE),
    (contracts.layout_does_not_matter, ignores_strides, DENSE),
]


@pytest.mark.parametrize(("contract", "broken", "case"), BROKEN, ids=lambda x: getattr(x, "__name__", None))
def test_contract_sees_the_fault(
    contract: Callable[..., list[Finding]], broken: Callable[..., Outputs], case: Case
) -> None:
    healthy = OPERATORS["hgru2"]
    assert not failures(contract(case, "chunked", torch.float64, healthy))
    assert failures(contract(case, "chunked", torch.float64, replace(healthy, run=broken)))


def test_rounds_once_sees_low_precision_inside() -> None:
    broken = replace(OPERATORS["hgru2"], run=low_precision_inside)
    assert failures(contracts.rounds_once(DENSE, "chunked", torch.bfloat16, broken))


def test_steps_contract_sees_a_wrong_step() -> None:
    def step(**call: Any) -> tuple[Tensor, Tensor]:
        output, state = ops.hgru2_step(**call)
        return output, state * (1 + 1e-12)

    broken = replace(OPERATORS["hgru2"], step=step)
    assert failures(contracts.steps_equal_whole(DENSE, "chunked", torch.float64, broken))


def test_poison_reaches_every_way_to_make_memory_and_ends() -> None:
    like = torch.ones(3)
    before = (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)
    with poisoned():
        made = (torch.empty(3), torch.empty_like(like), like.new_empty(3), torch.empty(3, dtype=torch.bfloat16))
        assert all(x.isnan().all() for x in made)
        assert unwritten(like).isnan().all()
        with pytest.raises(RuntimeError, match="stop"), poisoned():
            raise RuntimeError("stop")
        assert torch.empty(3).isnan().all()
    assert (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory) == before


@torch.library.custom_op("hgrn2_tests::unwritten", mutates_args=())
def unwritten(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def test_relative_error_of_special_values() -> None:
    one, zero, nan = torch.ones(2), torch.zeros(2), torch.tensor([1.0, torch.nan])
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == torch.inf
    assert relative_error(one[:1], one) == torch.inf
    assert relative_error(1.5 * one, one) == 0.5
    assert relative_error(torch.tensor([1 + 1j]), torch.tensor([1 + 0j])) == 1
    assert not Finding("nan", relative_error(nan, one), 1).ok
    assert "nan" in failures([Finding("nan", relative_error(nan, one), 1)])


def test_different_bits_of_special_values() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    assert different_bits(x, x) == 0
    assert different_bits(-x, x) == 3
    assert different_bits(x.double(), x) == 3
    assert different_bits(x.new_tensor([torch.nan]), x.new_tensor([torch.nan])) == 1
    assert different_bits(torch.tensor([1 + 2j]), torch.tensor([1 - 2j]).conj()) == 0


def test_no_tolerance_from_a_loop_that_fails() -> None:
    with pytest.raises(ValueError, match="plain token loop"):
        allowed(torch.inf, torch.float32)
