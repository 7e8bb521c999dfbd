"""Rows of runs that were never trained."""

from collections.abc import Callable
from typing import Any

import pytest

from hgrn2.rows import Row
from hgrn2.study.protocol import Arm, Case, Study, common
from hgrn2.study.record import case_of

DETAILS: dict[str, Any] = {
    "parameters": 45_000_000, "state_bytes": 524_288, "tokens_per_s": 900_000, "data": "wiki",
    "data_tokens": 18_000_000, "held_out_tokens": 251_128, "epochs": 0.9, "device": "cuda",
}  # fmt: skip


@pytest.fixture
def row() -> Callable[..., Row]:
    """Makes the row of a run that ended with a loss."""

    def made(study: Study, arm: Arm, loss: float, *, lr: float, seed: int = 0, tokens: int = 0, **details: Any) -> Row:
        case = Case(arm=arm, lr=lr, seed=seed, tokens=tokens or study.sweep)
        machine = {"gpu": "a GPU", "cpu": "a CPU", "commit": "0"}
        known = DETAILS | {"curve": [[case.tokens // 2, loss + 1], [case.tokens, loss]]} | details
        return Row(
            bench="study", case=case_of(common(study, "c0ffee", "bfloat16"), case), subject=arm.subject,
            backend="torch", value=loss, unit="nats/token", median=loss, low=loss, high=loss, repeats=1,
            details=known, machine=machine, date=f"2026-12-01T00:00:{seed:02d}Z",
        )  # fmt: skip

    return made
