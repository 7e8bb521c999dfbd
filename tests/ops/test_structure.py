"""Split = whole, steps = whole, packed = separate, causality to the bit, and the rest of `contracts_for`."""

import pytest
import torch

from hgrn2.testing.cases import Case
from hgrn2.testing.compare import failures
from hgrn2.testing.contracts import contracts_for
from hgrn2.testing.grids import ACCURACY, SMALL, STRUCTURE


def pairs(cases: tuple[Case, ...], dtype: torch.dtype) -> list[object]:
    """(case, contract name) for every contract that applies, except the accuracy that test_accuracy covers."""
    named = [(case, name) for case in cases for name in contracts_for(case, dtype) if name != "matches_reference"]
    return [pytest.param(case, name, id=f"{name}-{case}") for case, name in named]


def check(case: Case, name: str, backend: str, dtype: torch.dtype) -> None:
    assert not failures(contracts_for(case, dtype)[name](case, backend, dtype))


@pytest.mark.parametrize(("case", "contract"), pairs(STRUCTURE, torch.float32))
def test_contract_in_float32(case: Case, contract: str, backend: str) -> None:
    check(case, contract, backend, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("case", "contract"), pairs(SMALL, torch.float32))
def test_contract_in_other_dtypes(case: Case, contract: str, dtype: torch.dtype, backend: str) -> None:
    if case.complex and dtype == torch.bfloat16:
        pytest.skip("PyTorch has no complex bfloat16")
    check(case, contract, backend, dtype)


@pytest.mark.parametrize(("case", "contract"), pairs(SMALL, torch.float32))
def test_the_reference_keeps_the_contracts_too(case: Case, contract: str) -> None:
    check(case, contract, "reference", torch.float32)


@pytest.mark.full
@pytest.mark.parametrize(("case", "contract"), pairs(ACCURACY, torch.float32))
def test_contract_on_every_case(case: Case, contract: str, backend: str) -> None:
    check(case, contract, backend, torch.float32)
