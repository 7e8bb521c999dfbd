"""One's own tables: what is read as what, which columns are taken, and every mistake named with file and row."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrn2.data.labelled import Columns, choose_columns, classes_of, hold_out, numbers_of, read_labelled
from hgrn2.data.tables import read_table
from hgrn2.errors import UserError

TEXT = Columns(inputs=("text",), label="label", kind="text")


def table(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_separated_tables(tmp_path: Path, delimiter: str, name: str) -> None:
    text = '\ufefftext;label\r\n"a;b\r\nc ""x""";good\r\n;\r\n\r\nd; bad \r\n'.replace(";", delimiter)
    rows = read_table(table(tmp_path, text, name))
    assert [row.fields for row in rows] == [
        {"text": f'a{delimiter}b\nc "x"', "label": "good"}, {"text": "d", "label": " bad "},
    ]  # fmt: skip
    assert rows[1].where.endswith(f"{name}, row 5")


def test_a_cell_may_be_as_long_as_it_is(tmp_path: Path) -> None:
    long = "x" * 500_000
    assert read_table(table(tmp_path, f"text,label\n{long},a\n"))[0].fields["text"] == long


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"])
def test_json_tables(tmp_path: Path, name: str) -> None:
    values = [{"text": "a", "label": 1}, {"text": [1, 2.5], "label": None}]
    text = json.dumps(values) if name == "a.json" else "\n\n".join(map(json.dumps, values))
    assert [row.fields for row in read_table(table(tmp_path, text, name))] == values


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\na,b,c\n", r"a\.csv, row 2 has 3 cells, the first has 2; is a text with the separator"),
        ("a.csv", "text,label\na,b\nc\n", r"a\.csv, row 3 has 1 cells, the first has 2"),
        ("a.csv", 'text,label\n"a,b\n', r"a\.csv, row 2: unexpected end of data"),
        ("a.csv", "text,text\na,b\n", r"two columns named 'text'; if it has no header, say --no-header"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", b"text,label\ncaf\xe9,a\n", r"a\.csv is not UTF-8 at byte 14"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', r"a\.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl, line 1 is not a JSON object"),
        ("a.txt", "text", r"a\.txt is no table; give \.csv, \.tsv, \.jsonl"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(table(tmp_path, text, name))


@pytest.mark.parametrize(
    ("header", "row", "wanted"),
    [
        ("id,text,label", "1,words here,a", (("text",), "label", "text")),
        ("Review;Sentiment", "fine;good", (("Review",), "Sentiment", "text")),
        ("comment,kind of it", "fine,good", (("comment",), "kind of it", "text")),
        ("what he said,Label", "fine,good", (("what he said",), "Label", "text")),
        ("values,label", '"0.5 1 2",a', (("values",), "label", "numbers")),
        ("t1,t2,t3,label", "0.5,1,2e3,a", (("t1", "t2", "t3"), "label", "numbers")),
        ("text,label", "42,a", (("text",), "label", "text")),
    ],
)
def test_columns_are_guessed(tmp_path: Path, header: str, row: str, wanted: tuple[Any, ...]) -> None:
    found = choose_columns(read_table(table(tmp_path, f"{header}\n{row}\n")))
    assert (found.inputs, found.label, found.kind) == wanted


def test_columns_that_cannot_be_guessed_or_are_not_there(tmp_path: Path) -> None:
    rows = read_table(table(tmp_path, "one,two,three\na,b,c\n"))
    with pytest.raises(UserError, match=r"--label-column and --text-column \(columns: one, two, three\)"):
        choose_columns(rows)
    with pytest.raises(UserError, match=r"no column 'thre'; did you mean three\?"):
        choose_columns(rows, ["thre"])
    assert choose_columns(rows, ["one"], "three") == Columns(inputs=("one",), label="three", kind="text")
    plain = read_table(table(tmp_path, "a,b\nc,d\n"), header=False)
    assert choose_columns(plain, ["2"], "1").inputs == ("2",)


def test_labels_of_any_kind(tmp_path: Path) -> None:
    values = [1, 2.0, True, "x y", "10"]
    lines = "".join(json.dumps({"text": "t", "label": value}) + "\n" for value in values)
    found = read_labelled([table(tmp_path, lines, "a.jsonl")], TEXT)
    assert found.labels == ["1", "2", "true", "x y", "10"]
    assert classes_of(["10", "9", "-1", "9"], "label") == ("-1", "9", "10")
    assert classes_of(["10", "9", "b"], "label") == ("10", "9", "b")
    with pytest.raises(UserError, match="every row has the label 'a'"):
        classes_of(["a", "a"], "label")
    with pytest.raises(UserError, match="column 'score' has 100 different values in 100 rows; is it the label"):
        classes_of([str(n) for n in range(100)], "score")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: the label '2' does not occur in the training data"):
        numbers_of(found, ("1", "true"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "", "label": "a"}', r"line 2: the text \('text'\) is empty"),
        ('{"text": null, "label": "a"}', "is empty"),
        ('{"text": ["a"], "label": "a"}', "is no text but"),
        ('{"text": "t", "label": " "}', r"line 2: the label \('label'\) is empty"),
        ('{"text": "t", "label": ["a", "b"]}', "give one per row"),
        ('{"label": "a"}', r"line 2 has no field 'text' \(fields: label\)"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    path = table(tmp_path, f'{{"text": "good", "label": "a"}}\n{line}\n', "a.jsonl")
    with pytest.raises(UserError, match=message):
        read_labelled([path], TEXT)
    found = read_labelled([path], TEXT, bad="skip")
    assert (len(found), found.left_out) == (1, 1)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([1, 2.5, -3], [[1], [2.5], [-3]]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("1 2.5,-3", [[1], [2.5], [-3]]),
        ("[1, 2, 3]", [[1], [2], [3]]),
        ("[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
        ("1 two", None), ([1, None], None), ([1, "nan"], None), ([[1, 2], [3]], None), ([], None), ("1e999", None),
        ([True, False], None),
    ],
)  # fmt: skip
def test_sequences_of_numbers(tmp_path: Path, value: Any, wanted: Any) -> None:
    path = table(tmp_path, json.dumps({"series": value, "label": "a"}) + "\n", "a.jsonl")
    columns = Columns(inputs=("series",), label="label", kind="numbers")
    if wanted is None:
        with pytest.raises(UserError, match="line 1: a sequence of numbers in 'series' must stand there"):
            read_labelled([path], columns)
        return
    (found,) = read_labelled([path], columns).inputs
    assert found.dtype == np.float32
    assert found.tolist() == wanted


def test_every_class_is_held_out_in_its_share() -> None:
    labels = np.array([0] * 80 + [1] * 20 + [2])
    held = hold_out(labels, 0.25, seed=3)
    assert np.bincount(labels[held], minlength=3).tolist() == [20, 5, 0]  # the only example of a class is learned from
    assert (held == hold_out(labels, 0.25, seed=3)).all()
    assert (held != hold_out(labels, 0.25, seed=4)).any()
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            hold_out(labels, fraction, seed=0)
