"""Rows: what they say, and that a file of them survives crashes and several writers."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from hgrn2 import rows as record
from hgrn2.errors import UserError
from hgrn2.rows import Row, append, measurement, prepare_folder, read_folder, read_rows
from hgrn2.settings import to_dict


@pytest.fixture
def row() -> Row:
    return measurement("train", {"tokens": 64}, "hgrn2", "native", [4.0, 1.0, 2.0, 3.0, 100.0], "tokens/s", {"a": 1})


def test_a_row_holds_median_quantiles_and_machine(row: Row) -> None:
    assert (row.value, row.median, row.repeats) == (3.0, 3.0, 5)
    assert row.low == pytest.approx(1.8)  # a fifth of the way through the sorted samples
    assert row.high == pytest.approx(23.2)
    assert {"cpu", "cores", "threads", "torch", "commit"} <= set(row.machine)
    assert row.date.endswith("Z")


def test_one_repeat_has_no_spread() -> None:
    row = measurement("ops", {}, "hgrn2", "native", [7.0], "ms")
    assert (row.low, row.median, row.high, row.repeats) == (7.0, 7.0, 7.0, 1)


def test_rows_come_back_as_they_were_written(row: Row, tmp_path: Path) -> None:
    second = replace(row, bench="ops", subject="other")
    assert append(tmp_path, row) == tmp_path / "train.jsonl"
    append(tmp_path, row)
    append(tmp_path, second)
    assert read_rows(tmp_path / "train.jsonl") == [row, row]
    assert read_folder(tmp_path) == [second, row, row]  # files by name


def test_a_torn_line_does_not_swallow_the_next_row(row: Row, tmp_path: Path) -> None:
    path = append(tmp_path, row)
    path.write_bytes(path.read_bytes() + b'{"bench": "tra')
    append(tmp_path, row)
    with pytest.raises(UserError, match=r"line 2 is not valid JSON"):
        read_rows(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    assert read_rows(path) == [row, row]


def _write_many(folder: Path, row: Row) -> None:
    for _ in range(50):
        append(folder, row)


def test_rows_of_processes_that_write_at_once_stay_whole(row: Row, tmp_path: Path) -> None:
    long = replace(row, details={"text": "x" * 20_000})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, long)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert read_rows(tmp_path / "train.jsonl") == [long] * 100


def test_a_full_disk_leaves_no_half_row(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = append(tmp_path, row)
    before = path.read_bytes()
    write = record.os.write
    monkeypatch.setattr(record.os, "write", lambda handle, data: write(handle, data[:10]))
    with pytest.raises(OSError, match="no space"):
        append(tmp_path, row)
    assert path.read_bytes() == before


def test_rows_of_others_are_left_out_and_broken_ones_named(row: Row, tmp_path: Path) -> None:
    path = append(tmp_path, row)
    text = path.read_text()
    path.write_text('{"paper": "a target"}\n\n' + text)
    assert read_rows(path) == [row]
    values = json.loads(text)
    del values["unit"]
    path.write_text(json.dumps(values) + "\n")
    with pytest.raises(UserError, match="line 1 lacks unit"):
        read_rows(path)


def test_bad_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(UserError, match="not a folder of results"):
        read_folder(tmp_path / "missing")
    with pytest.raises(UserError, match="does not exist"):
        read_rows(tmp_path / "missing.jsonl")


def test_rows_of_earlier_versions_are_read_in_todays_words(row: Row, tmp_path: Path) -> None:
    new = [
        replace(row, unit="accuracy"),
        replace(row, unit="nats/token"),
        replace(row, bench="peaks"),
        replace(row, subject="sequential"),
    ]
    words = {"accuracy": "share right", "nats/token": "nats a token", "peaks": "ceilings", "sequential": "walk"}
    written = [json.dumps(to_dict(each)) for each in new]
    for now, before in words.items():
        written = [line.replace(f'"{now}"', f'"{before}"') for line in written]
    path = tmp_path / "old.jsonl"
    path.write_text("\n".join(written) + "\n")
    assert all(before in path.read_text() for before in words.values())
    assert read_rows(path) == new
