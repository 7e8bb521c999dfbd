"""The comparison of the two forms for small heads: rows that say what was measured, and no time of a wrong form."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.bench import small_heads
from hgrn2.bench.record import Row, read_rows
from hgrn2.bench.settings import Limits
from hgrn2.errors import UserError

SMALL = ((2, 5, 12),)


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(small_heads, "SHAPES", SMALL)
    monkeypatch.setattr(small_heads, "HEAD_SIZES", (1, 4))
    assert small_heads.main(["--out", str(tmp_path), "--repeats", "2"]) == 0
    rows = read_rows(tmp_path / "small_heads.jsonl")
    assert {(row.subject, row.case["n"]) for row in rows} == {(f, n) for f in small_heads.FORMS for n in (1, 4)}
    for row in rows:
        assert (row.repeats, row.unit, row.case["shape"]) == (2, "ms", "2,5,12")
        assert row.value > 0
        assert row.backend in ("native", "chunked")
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_wrong_form_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = small_heads.FORMS["element-wise"]

    def wrong(*inputs: torch.Tensor, **options: Any) -> Any:
        o, state = right(*inputs, **options)
        return o * 1.01, state

    monkeypatch.setitem(small_heads.FORMS, "element-wise", wrong)
    rows: list[Row] = []
    with pytest.raises(UserError, match="the two forms disagree with 6 heads; nothing was recorded"):
        small_heads.measure(SMALL, (2,), "cpu", Limits(repeats=1, threads=1), rows.append)
    assert not rows


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert small_heads.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
