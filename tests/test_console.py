"""Text for people: tables at every width, names as they are, streams of every kind."""

import io
import json
import math
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hgrn2 import console
from hgrn2.console import Columns, prepared_streams, print_json

NUMBERS = st.integers(0, 10**12).map(lambda n: f"{n:,}")
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z", "M")), max_size=30) | st.sampled_from(
    ["[bold]x.png", "a[/b].png", "a long name of a class", "日本語の名前", ""]
)


def drawn(table: Columns, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(table)
    return stream.getvalue()


# The longest number has 17 characters: no narrower line holds it.
@given(st.lists(st.tuples(NAMES, NUMBERS, NUMBERS, NUMBERS), max_size=4), st.integers(17, 120), st.booleans())
def test_no_width_cuts_a_number_or_reads_a_name_as_markup(rows: list[tuple[str, ...]], width: int, frame: bool) -> None:
    text = drawn(Columns(("name", "training tokens", "held-out tokens", "steps"), rows, frame=frame), width)
    assert "…" not in text
    for _, *numbers in rows:
        for number in numbers:
            assert number in text
    assert max(map(len, text.splitlines()), default=0) <= width


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("name", ["[bold]x.png", "a[/b].png", "runs/[red]/[link=http://x]y"])
def test_names_are_whole(name: str, width: int) -> None:
    text = drawn(Columns(("file", "accuracy"), [(name, "97.25%")]), width)
    for mark in "│┃|┏┓┗┛└┘┡┩━─┳┴╇":
        text = text.replace(mark, "")
    assert name.replace(" ", "") in "".join(text.split()).replace("97.25%", "")
    assert "97.25%" in text


def test_where_a_table_does_not_fit_each_row_is_some_lines() -> None:
    head = ("name", *(f"column {n}" for n in range(6)))
    text = drawn(Columns(head, [("first", *("123,456,789",) * 6)], title="Many"), 40)
    assert text.splitlines()[:3] == ["Many", "name: first", "  column 0: 123,456,789"]
    assert text.count("123,456,789") == 6


def test_json_that_any_encoding_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"é": [math.nan, math.inf, 1.5, (2,)], "path": "caf\udce9"}
    print_json(value)
    assert json.loads(capsys.readouterr().out) == {"é": [None, None, 1.5, [2]], "path": "caf\udce9"}
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            print_json({"a": "日本 é"})
        stream.flush()
        assert json.loads(raw.getvalue().decode(encoding)) == {"a": "日本 é"}


def test_characters_that_an_encoding_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    with prepared_streams():
        console.show(Columns(("class", "probability"), [("日本", "50.0%")]), "é, 日本 and \udce9")
        sys.stdout.flush()
    assert "é, ?? and ?" in raw.getvalue().decode("latin-1")
    assert "50.0%" in raw.getvalue().decode("latin-1")
    assert stream.errors == "strict"


def test_closed_streams_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with prepared_streams():
        print("lost")
        print("lost", file=sys.stderr)
        assert sys.stdin.read() == ""
        assert not sys.stdout.isatty()
    assert sys.stdin is sys.stdout is sys.stderr is None


def test_a_reader_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    monkeypatch.setattr(sys, "stdout", os.fdopen(theirs, "w", encoding="utf-8"))
    print("nobody reads this")
    assert isinstance(console.stdout_error(), BrokenPipeError)
    console.abandon_stdout()
    assert console.stdout_error() is None
    sys.stdout.close()
