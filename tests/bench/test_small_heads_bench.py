"""The comparison of the two forms for small heads: rows that say what was measured, and no time of a wrong form."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2.bench import small_heads
from hgrn2.bench.settings import Limits
from hgrn2.errors import UserError
from hgrn2.rows import Row, read_rows

SMALL = ((2, 5, 12),)


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ["--shapes", "2,5,12", "--sizes", "1", "4"]
    assert small_heads.main(["--out", str(tmp_path), "--repeats", "2", *asked]) == 0
    rows = read_rows(tmp_path / "small_heads.jsonl")
    assert {(row.subject, row.case["n"]) for row in rows} == {(f, n) for f in small_heads.FORMS for n in (1, 4)}
    for row in rows:
        assert (row.repeats, row.unit, row.case["shape"]) == (2, "ms", "2,5,12")
        assert row.value > 0
        assert row.backend in ("native", "chunked")
    assert len(capsys.readouterr().out.splitlines()) == 4


def wrong_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    right = small_heads.form_of

    def form(name: str, device: str) -> Any:
        run = right(name, device)
        return run if name == "outer" else lambda q, f, *rest, **options: run(q, 1.2 * f, *rest, **options)

    monkeypatch.setattr(small_heads, "form_of", form)


def test_a_wrong_form_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_gates(monkeypatch)
    rows: list[Row] = []
    with pytest.raises(UserError, match="the forms disagree with 6 heads; nothing was recorded"):
        small_heads.measure(SMALL, (2,), "cpu", Limits(repeats=1, threads=1), rows.append)
    assert not rows


def test_sixteen_bit_forms_agree_within_their_bound_and_a_wrong_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = small_heads._problem(2, 70, 12, "cpu", torch.bfloat16)
    for n in (1, 2, 4):
        small_heads._check_equal(inputs, 12 // n, {x: small_heads.form_of(x, "cpu") for x in small_heads.FORMS})
    wrong_gates(monkeypatch)
    with pytest.raises(UserError, match="disagree"):
        small_heads._check_equal(inputs, 3, {x: small_heads.form_of(x, "cpu") for x in small_heads.FORMS})


def test_default_shapes_divide_by_every_default_size() -> None:
    for device, shapes in small_heads.SHAPES.items():
        small_heads._check_asked(shapes, small_heads.HEAD_SIZES[device], "cpu")


@pytest.mark.parametrize(("asked", "reason"), [
    (["--shapes", "2,5"], "takes B,T,D"), (["--shapes", "2,0,12"], "at least 1"),
    (["--shapes", "2,5,12", "--sizes", "5"], "heads of 5 channels do not divide a width of 12"),
    (["--sizes", "0"], "heads of 0 channels"), (["--forms", "walk"], "there is no form 'walk' on cpu"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, asked: list[str], reason: str
) -> None:
    assert small_heads.main(["--out", str(tmp_path / "rows"), *asked]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "rows").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert small_heads.main(["--out", str(tmp_path), "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert small_heads.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
