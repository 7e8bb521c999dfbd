"""Documents from files: exact, bounded, in order, and every mistake named with its place."""

import codecs
import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from hgrn2.data import sources
from hgrn2.data.sources import Sources
from hgrn2.errors import UserError

AWKWARD = "first\r\nsecond\rthird\n\n\n  é 漢字 \ufeff\U0001f600\x0b\x0c\u2028 end  \n"


def documents(*inputs: Path, field: str = "text", **options: Any) -> list[str]:
    texts, current = [], ""
    for piece in Sources(inputs, field, **options).pieces():
        assert piece.text
        current += piece.text
        if piece.ends:
            texts.append(current)
            current = ""
    assert current == ""
    return texts


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    packers = {".xz": lzma.compress, ".gz": gzip.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz", "a.gz"])
def test_text_comes_back_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, name: str) -> None:
    monkeypatch.setattr("hgrn2.data.units.BLOCK", block)
    path = write(tmp_path / name, (AWKWARD * 3).encode())
    assert documents(path, newlines="keep") == [AWKWARD * 3]
    assert documents(path) == [AWKWARD.replace("\r\n", "\n").replace("\r", "\n") * 3]
    assert all(len(piece.text) <= block for piece in Sources([path]).pieces())


@pytest.mark.parametrize("block", [5, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.NDJSON.gz"])
def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, name: str) -> None:
    monkeypatch.setattr("hgrn2.data.units.BLOCK", block)
    rows = [{"body": AWKWARD}, {"body": ""}, {"body": "two words here", "id": 3}]
    text = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert documents(write(tmp_path / name, text.encode()), field="body", newlines="keep") == [
        AWKWARD,
        "two words here",
    ]
    assert "\r" not in documents(tmp_path / name, field="body")[0]


def test_folders_are_read_in_name_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/deep/y", ".hidden", ".git/x.txt", "c/1.jsonl"):
        text = f'{{"text": "{name}"}}' if name.endswith("jsonl") else name
        write(tmp_path / "in" / name, text.encode())
    write(tmp_path / "in" / "empty.txt", b"")
    assert documents(tmp_path / "in") == ["b.txt", "a/z.txt", "a/deep/y", "c/1.jsonl"]
    assert documents(tmp_path / "in" / "a", tmp_path / "in" / "b.txt") == ["a/z.txt", "a/deep/y", "b.txt"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz", "a.jsonl"])
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_wrong_encoding_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr("hgrn2.data.units.BLOCK", block)
    good = '{"text": "größe"}\n'.encode()
    path = write(tmp_path / name, good + '{"text": "größe"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 at byte {len(good) + 12};"):
        documents(path)


def test_text_that_ends_inside_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"abc" + "漢".encode()[:2])
    with pytest.raises(UserError, match="not UTF-8 at byte 3"):
        documents(path)
    with pytest.raises(UserError, match=r"b\.txt is not UTF-16-LE at byte 8"):
        documents(write(tmp_path / "b.txt", codecs.BOM_UTF16_LE + "abc".encode("utf-16-le") + b"\x00\xd8"))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_byte_order_marks_name_the_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, block: int
) -> None:
    monkeypatch.setattr("hgrn2.data.units.BLOCK", block)
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    path = write(tmp_path / "a.txt", mark + (AWKWARD * 40).encode(encoding))
    assert documents(path, newlines="keep") == [AWKWARD * 40]
    found = Sources([path]).survey()
    counts = (found.byte_order_marks, found.utf16_files, found.carriage_returns)
    assert counts == (1, int(encoding != "utf-8-sig"), AWKWARD.count("\r") * 40)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_not_taken_for_utf8(tmp_path: Path, encoding: str) -> None:
    for name in ("a.txt", "a.jsonl"):
        with pytest.raises(UserError, match=rf"{name} seems to be UTF-16 without a byte order mark"):
            documents(write(tmp_path / name, "some text\n".encode(encoding)))
    with pytest.raises(UserError, match=r"b\.jsonl is UTF-16-LE; convert it first"):
        documents(write(tmp_path / "b.jsonl", '{"text": "a"}\n'.encode("utf-16")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "not valid JSON"),
        ("[1]", "must hold an object, not a list"),
        ('{"id": 1, "body": "x"}', r"no field 'text' \(fields: id, body\)"),
        ('{"text": 5}', "field 'text' is not text"),
        ('{"text": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_line_is_numbered(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n'.encode())
    with pytest.raises(UserError, match=rf"a\.jsonl:3: .*{message}"):
        documents(path)


def test_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LINE_LIMIT", 30)
    path = write(tmp_path / "a.jsonl", b'{"text": "short"}\n{"text": "' + b"x" * 100)
    with pytest.raises(UserError, match=r"a\.jsonl:2: the line is longer than 30 bytes"):
        documents(path)


def test_missing_and_empty_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no input is given"):
        Sources([])
    with pytest.raises(UserError, match=r"gone\.txt does not exist"):
        Sources([tmp_path / "gone.txt"])
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void holds no files"):
        Sources([tmp_path / "void"])
    full = write(tmp_path / "full.txt", b"text")
    for name in ("a.txt", "a.txt.xz", "a.jsonl"):
        with pytest.raises(UserError, match=rf"{name} is empty"):
            documents(full, write(tmp_path / name, b""))
    write(tmp_path / "void" / "a.txt", b"")
    with pytest.raises(UserError, match="void holds no text"):
        documents(tmp_path / "void")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_inputs(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "closed" / "a.txt", b"text")
    path.chmod(0)
    with pytest.raises(UserError, match=r"a\.txt may not be read"):
        documents(path)
    path.parent.chmod(0)
    try:
        with pytest.raises(UserError, match="closed may not be read"):
            Sources([tmp_path / "in"])
    finally:
        path.parent.chmod(0o755)


@pytest.mark.parametrize("name", ["a.txt.xz", "a.txt.gz"])
def test_damaged_compression(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, AWKWARD.encode() * 200).read_bytes()
    for data in (whole[: len(whole) // 2], b"this is plain text", whole[:20] + b"\xff" * 20 + whole[40:]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            documents(tmp_path / name)


def test_survey_and_progress(tmp_path: Path) -> None:
    one = write(tmp_path / "one.txt", b"abcab")
    two = write(tmp_path / "two.jsonl", b'{"text": "cd"}\n{"text": "e"}\n')
    heard: list[int] = []
    inputs = Sources([one, two])
    survey = inputs.survey(alphabet=True, on_read=heard.append)
    assert (survey.documents, survey.characters, survey.alphabet) == (3, 8, set("abcde"))
    assert heard == sorted(heard)
    assert heard[-1] == inputs.size == one.stat().st_size + two.stat().st_size
