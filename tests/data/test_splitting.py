"""Documents within a text file: every form of `--split`, however the text comes in blocks."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn2.data.sources import Sources
from hgrn2.data.splitting import parse_splitting, split_documents
from hgrn2.errors import UserError

TEXT = "\nONE\nfirst line\n\nsecond\n \n\n\nTWO\nthird||fourth\n\n  \n"


def documents(text: str, spec: str, block: int = 1 << 20, limit: int = 1 << 20) -> list[str]:
    blocks = (text[n : n + block] for n in range(0, len(text), block))
    made, current = [], ""
    for piece in split_documents(blocks, parse_splitting(spec), limit):
        assert piece.text
        current += piece.text
        if piece.ends:
            made.append(current)
            current = ""
    assert current == ""
    return made


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("none", [TEXT]),
        ("lines", ["ONE", "first line", "second", "TWO", "third||fourth"]),
        ("blank-lines", ["ONE\nfirst line", "second\n ", "TWO\nthird||fourth\n\n  "]),
        ("blank-lines:3", ["ONE\nfirst line\n\nsecond\n ", "TWO\nthird||fourth\n\n  "]),
        ("marker:||", ["ONE\nfirst line\n\nsecond\n \n\n\nTWO\nthird", "fourth\n\n  "]),
        ("heading:^[A-Z]+$", ["ONE\nfirst line\n\nsecond\n ", "TWO\nthird||fourth\n\n  "]),
    ],
)
@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_forms(spec: str, wanted: list[str], block: int) -> None:
    assert documents(TEXT, spec, block) == wanted


@given(st.text("ab\n |", max_size=60), st.integers(1, 9), st.integers(3, 20))
def test_blocks_and_pieces_make_no_difference(text: str, block: int, limit: int) -> None:
    for spec in ("none", "marker:|b", "heading:^a"):
        assert documents(text, spec, block, 1 << 20) == documents(text, spec)
    for spec in ("none", "marker:|b"):
        assert documents(text, spec, block, limit) == documents(text, spec)
    marked = [part.strip("\n") for part in text.split("|b")]
    assert documents(text, "marker:|b") == [part for part in marked if part.strip()]
    assert documents(text, "lines") == [line for line in text.split("\n") if line.strip()]
    assert "".join(documents(text, "heading:^a")).replace("\n", "").strip() == re.sub(r"\n", "", text).strip()


@pytest.mark.parametrize("spec", ["", "words", "blank-lines:0", "blank-lines:x", "marker:", "heading:", "none:3"])
def test_other_forms_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"--split .*: write none, lines, blank-lines"):
        parse_splitting(spec)


def test_refusals_name_the_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a regular expression: unterminated"):
        parse_splitting("heading:[A")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="divides text files"):
        Sources([tmp_path / "a.jsonl"], split="lines")
