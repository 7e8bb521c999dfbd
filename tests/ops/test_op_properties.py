"""Contracts on random shapes, gates, splits and packings."""

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hgrn2.testing import contracts
from hgrn2.testing.cases import LOGITS, LOWER_BOUNDS, OPERATORS, Case, packed
from hgrn2.testing.compare import failures

FEW = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DTYPE = st.sampled_from([torch.float64, torch.float32])


@st.composite
def cases(draw: st.DrawFn, min_tokens: int = 1) -> Case:
    op = draw(st.sampled_from(sorted(OPERATORS)))
    options: tuple[tuple[str, Any], ...] = ()
    if OPERATORS[op].reversible and draw(st.booleans()):
        options = (("reverse", True),)
    return Case(
        op=op,
        batch=draw(st.integers(1, 3)),
        tokens=draw(st.integers(min_tokens, 140)),
        heads=draw(st.integers(1, 3)),
        key=draw(st.integers(1, 35)),
        value=draw(st.integers(1, 35)),
        gates=draw(st.sampled_from(sorted(LOGITS))),
        lower_bound=draw(st.sampled_from(sorted(LOWER_BOUNDS))) if op == "hgru2" else "none",
        state=draw(st.booleans()),
        complex=op == "gated_scan" and draw(st.booleans()),
        taps=draw(st.integers(1, 5)),
        options=options,
    )


@FEW
@given(case=cases(), dtype=DTYPE)
def test_any_shape_matches_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    assert not failures(contracts.matches_reference(case, backend, dtype))


@FEW
@given(case=cases(min_tokens=2), dtype=DTYPE, share=st.floats(0, 1))
def test_any_split_equals_the_whole(backend: str, case: Case, dtype: torch.dtype, share: float) -> None:
    cut = round(share * case.tokens)
    assert not failures(contracts.split_equals_whole(case, backend, dtype, cuts=[cut]))


@FEW
@given(case=cases(), dtype=DTYPE, lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5))
def test_any_packing_equals_separate_documents(
    backend: str, case: Case, dtype: torch.dtype, lengths: list[int]
) -> None:
    assert not failures(contracts.packed_equals_separate(packed(case, tuple(lengths)), backend, dtype))


@FEW
@given(case=cases(min_tokens=3), dtype=DTYPE)
def test_the_future_never_leaks(backend: str, case: Case, dtype: torch.dtype) -> None:
    assert not failures(contracts.future_does_not_leak(case, backend, dtype))
