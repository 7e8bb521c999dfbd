"""`hgrn2 bench data`: a row for each number of processes, and what cannot be prepared in one line."""

from pathlib import Path

import pytest

from hgrn2.bench.data import measure
from hgrn2.bench.data_settings import DataBench
from hgrn2.errors import UserError
from hgrn2.rows import Row


def test_rows_of_preparing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    rows: list[Row] = []
    measure([tmp_path / "a.txt"], DataBench(processes=(1, 2), repeats=1), rows.append)
    assert [row.backend for row in rows] == ["1 process", "2 processes", "1 process with the library's threads"]
    assert {row.case["text_bytes"] for row in rows} == {1000}
    assert rows[0].value == pytest.approx(1000 / rows[0].details["seconds"], rel=0.1)
    with pytest.raises(UserError, match=r"error: .*gone does not exist"):
        measure([tmp_path / "gone"], DataBench(repeats=1), rows.append)
    with pytest.raises(UserError, match="from 1 on"):
        DataBench(processes=(0,))
