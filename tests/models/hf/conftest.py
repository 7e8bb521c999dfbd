"""Shared by the tests of the transformers classes: one small model of each kind, in float64, and its own twin."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def quiet() -> None:
    """No progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture
def twin(make: Callable[..., Any]) -> Callable[..., Any]:
    """(our LanguageModel, transformers' class with the same weights), in evaluation mode."""

    def build(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[Any, Any]:
        from hgrn2.models.hf import from_language_model

        own = make(name, **changes).to(dtype).eval()
        return own, from_language_model(own)

    return build


@pytest.fixture
def padded() -> Callable[..., tuple[Tensor, Tensor]]:
    """Rows of given lengths, padded with id 0 on the left: (ids, mask)."""

    def build(rows: list[Tensor], side: str = "left") -> tuple[Tensor, Tensor]:
        longest = max(len(row) for row in rows)
        ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
        for n, row in enumerate(rows):
            place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
            ids[n, place], mask[n, place] = row, 1
        return ids, mask

    return build
