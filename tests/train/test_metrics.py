"""Metrics files: whole after any interruption, and after a resume the same as without one."""

import json
import math
from pathlib import Path

import pytest

from hgrn2.errors import UserError
from hgrn2.train.metrics import MetricsWriter, read_metrics


def write_run(path: Path, first: int, last: int, resume_step: int | None = None) -> None:
    """Steps first..last of a run that is a function of the step alone, measured at every fourth step."""
    with MetricsWriter(path, resume_step) as writer:
        for step in range(first, last + 1):
            same = {"step": step, "tokens": 100 * step, "elapsed_s": 0.5 * step}
            writer.step(**same, loss=5.0 / step, lr=1e-3, grad_norm=0.7, tokens_per_s=200.0)
            if step % 4 == 0:
                writer.eval(**same, loss=6.0 / step, bits_per_byte=2.0)
                writer.event(step=step, elapsed_s=0.5 * step, text=f"schöne Stelle {step}")


def test_records_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        written = [
            writer.step(step=1, tokens=64, loss=4.25, lr=1e-4, grad_norm=None, tokens_per_s=1e4, elapsed_s=0.25),
            writer.eval(step=1, tokens=64, elapsed_s=0.3, loss=4.5, corpora={"wiki": 4.0, "code": math.inf}),
            writer.event(step=1, elapsed_s=0.3, text="two\nlines"),
        ]
        assert read_metrics(path) == written, "each line must be there before the writer is closed"
    assert [record["kind"] for record in read_metrics(path)] == ["step", "eval", "event"]
    assert written[1]["bits_per_byte"] is None
    assert written[1]["corpora"] == {"wiki": 4.0, "code": None}
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize("killed_at", [8, 9, 11, 12])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path, killed_at: int) -> None:
    write_run(tmp_path / "straight", 1, 16)
    write_run(tmp_path / "resumed", 1, killed_at)
    write_run(tmp_path / "resumed", 9, 16, resume_step=8)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "straight").read_bytes()


def test_every_torn_end_is_mended(tmp_path: Path) -> None:
    write_run(tmp_path / "straight", 1, 5)
    write_run(tmp_path / "short", 1, 4)
    whole, kept = (tmp_path / "straight").read_bytes(), len((tmp_path / "short").read_bytes())
    torn = tmp_path / "torn"
    for cut in range(kept, len(whole)):
        torn.write_bytes(whole[:cut])
        records = read_metrics(torn)
        assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4] + [5] * (cut == len(whole) - 1)
        write_run(torn, 5, 5, resume_step=4)
        assert torn.read_bytes() == whole, f"cut after {cut} bytes"


def test_without_a_resume_step_the_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_run(path, 1, 4)
    before = path.read_bytes()
    path.write_bytes(before + b'{"kind": "st')
    write_run(path, 5, 6)
    assert path.read_bytes().startswith(before)
    assert [r["step"] for r in read_metrics(path) if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("line", ['{"kind": "step"', "[1, 2]", '{"kind": "other", "step": 1}', '{"kind": "eval"}'])
def test_a_broken_line_inside_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_run(path, 1, 2)
    first, second = path.read_text(encoding="utf-8").splitlines()
    broken = f"{first}\n{line}\n{second}\n"
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)
    with pytest.raises(UserError, match="line 2"):
        MetricsWriter(path, resume_step=1)
    assert path.read_text(encoding="utf-8") == broken, "a file that is not understood is left alone"


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.step(step=1, tokens=1, loss=math.nan, lr=0.1, grad_norm=math.inf, tokens_per_s=1.0, elapsed_s=1.0)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    record = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert record["loss"] is None
    assert record["grad_norm"] is None


def test_half_a_character_does_not_stop_a_run(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.event(step=1, elapsed_s=0.0, text="half \udce9")
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["text"] == "half ?"


@pytest.mark.parametrize("record", [{"kind": "step", "step": 1}, {"kind": "note", "step": 1, "text": "x"}, {}])
def test_other_records_are_refused(tmp_path: Path, record: dict) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer, pytest.raises(ValueError, match="not a metrics record"):
        writer.write(record)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_missing_file_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "none.jsonl")
