"""Every backend equals the float64 token loop: output, final state, all gradients; every kind of gate and shape."""

import pytest
import torch

from hgrn2.testing import contracts
from hgrn2.testing.cases import Case
from hgrn2.testing.compare import failures
from hgrn2.testing.grids import ACCURACY, FULL


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", ACCURACY, ids=str)
def test_matches_reference(case: Case, dtype: torch.dtype, backend: str) -> None:
    assert not failures(contracts.matches_reference(case, backend, dtype))


NARROW = [case for case in ACCURACY if not case.complex]


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_bfloat16_matches_reference(case: Case, backend: str) -> None:
    assert not failures(contracts.matches_reference(case, backend, torch.bfloat16))


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_bfloat16_is_computed_in_float32_and_rounded_once(case: Case, backend: str) -> None:
    assert not failures(contracts.rounds_once(case, backend, torch.bfloat16))


@pytest.mark.parametrize("contract", [contracts.matches_reference, contracts.rounds_once])
@pytest.mark.parametrize("case", [case for case in NARROW if case.gates == "normal" and case.tokens < 70], ids=str)
def test_float16(case: Case, contract: contracts.Contract, backend: str) -> None:
    assert not failures(contract(case, backend, torch.float16))


# In float32 only: over a thousand tokens the float64 loop, the reference, itself loses more than a few epsilons of
# float64.
@pytest.mark.full
@pytest.mark.parametrize("case", FULL, ids=str)
def test_long_and_wide_problems_match_reference(case: Case, backend: str) -> None:
    assert not failures(contracts.matches_reference(case, backend, torch.float32))
