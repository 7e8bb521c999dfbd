"""Documents from files: exact, bounded, in order, and every mistake named with its place."""

import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hgrn2.data import sources
from hgrn2.data.sources import Sources
from hgrn2.data.tokenizer import load_tokenizer
from hgrn2.errors import UserError

AWKWARD = "\ufefffirst\r\nsecond\rthird\n\n\n  é 漢字 \U0001f600\x0b\x0c\u2028 end  \n"


def documents(*inputs: Path, field: str = "text") -> list[str]:
    texts, current = [], ""
    for piece in Sources(inputs, field).pieces():
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
    monkeypatch.setattr(sources, "BLOCK", block)
    path = write(tmp_path / name, (AWKWARD * 3).encode())
    assert documents(path) == [AWKWARD * 3]
    assert all(len(piece.text) <= block for piece in Sources([path]).pieces())


@pytest.mark.parametrize("block", [5, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.NDJSON.gz"])
def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, name: str) -> None:
    monkeypatch.setattr(sources, "BLOCK", block)
    rows = [{"body": AWKWARD}, {"body": ""}, {"body": "two words here", "id": 3}]
    text = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert documents(write(tmp_path / name, text.encode()), field="body") == [AWKWARD, "two words here"]


def test_folders_are_read_in_name_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/deep/y", ".hidden", ".git/x.txt", "c/1.jsonl"):
        text = f'{{"text": "{name}"}}' if name.endswith("jsonl") else name
        write(tmp_path / "in" / name, text.encode())
    write(tmp_path / "in" / "empty.txt", b"")
    assert documents(tmp_path / "in") == ["b.txt", "a/z.txt", "a/deep/y", "c/1.jsonl"]
    assert documents(tmp_path / "in" / "a", tmp_path / "in" / "b.txt") == ["a/z.txt", "a/deep/y", "b.txt"]


def test_long_texts_are_cut_where_words_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", 20)
    lines = write(tmp_path / "lines.txt", b"one two three\nfour\n\nfive six seven eight nine ten")
    texts = [piece.text for piece in Sources([lines]).pieces()]
    assert texts == ["one two three\n", "four\n\nfive six", " seven eight nine", " ten"]


def test_cutting_leaves_gpt2_tokens_as_they_are(
    real: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = load_tokenizer(real("gpt2-vocab.bpe.xz"))
    text = lzma.decompress(real("wikitext2-raw-test.txt.xz").read_bytes()).decode()[:300_000]
    path = write(tmp_path / "text.txt", text.encode())
    monkeypatch.setattr(sources, "BLOCK", 1000)
    pieces = [piece.text for piece in Sources([path]).pieces()]
    assert len(pieces) > 300
    together = [index for ids in tokenizer.encode_documents(pieces) for index in ids.tolist()]
    assert together == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz", "a.jsonl"])
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_wrong_encoding_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(sources, "BLOCK", block)
    good = '{"text": "größe"}\n'.encode()
    path = write(tmp_path / name, good + '{"text": "größe"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 at byte {len(good) + 12};"):
        documents(path)


def test_text_that_ends_inside_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"abc" + "漢".encode()[:2])
    with pytest.raises(UserError, match="not UTF-8 at byte 3"):
        documents(path)
    utf16 = write(tmp_path / "b.txt", "text".encode("utf-16"))
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8 at byte 0"):
        documents(utf16)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "not valid JSON"),
        ("[1]", "not a JSON object"),
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
