"""Preparing with several processes, from every kind of input: the same bytes, and the same errors in one line."""

import base64
import itertools
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hgrn2.data.corpus import Corpus, prepare
from hgrn2.data.sources import Sources
from hgrn2.data.tokenizer import load_tokenizer
from hgrn2.errors import UserError

TEXTS = [f"document {n}: " + "wörter hello\r\n" * (n % 7) for n in range(40)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Lines, compressed lines, rows of a table and text files whose documents run over several blocks."""
    zstandard, parquet = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow.parquet")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl.xz").write_bytes(lzma.compress(lines))
    (tmp_path / "in/b.jsonl.zst").write_bytes(zstandard.compress(lines[:700]) + zstandard.compress(lines[700:]))
    (tmp_path / "in/c.txt").write_text("\n\n".join(TEXTS * 3), newline="")
    (tmp_path / "in/e.txt").write_text("one word", newline="")
    table = pytest.importorskip("pyarrow").table({"text": [*TEXTS, None, ""], "n": range(len(TEXTS) + 2)})
    parquet.write_table(table, tmp_path / "in/d.parquet", row_group_size=11)
    return [tmp_path / "in"]


@pytest.mark.parametrize("spec", ["chars", "bpe:300"])
def test_the_number_of_processes_changes_no_byte(
    tmp_path: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setattr("hgrn2.data.units.BLOCK", 300)
    how: dict[str, Any] = {"valid_fraction": 0.2, "shard_tokens": 1000, "split": "blank-lines"}
    found = []
    for processes in (1, 3):
        made = prepare(inputs, tmp_path / f"{processes}", spec, processes=processes, **how)
        assert made["processes"] == processes
        found.append(files_of(tmp_path / f"{processes}"))
    assert found[0] == found[1]
    assert len(found[0]) > 10
    corpus = Corpus.open(tmp_path / "3")
    starts = [*corpus.starts_between(0, corpus.n_tokens).tolist(), corpus.n_tokens]
    read = [corpus.tokenizer().decode(corpus.read(a, b - a)) for a, b in itertools.pairwise(starts)]
    if spec != "chars":  # whose documents have no end of their own
        assert set(read) <= {text.replace("\r\n", "\n").rstrip("\n") for text in (*TEXTS, "one word")} | {
            text.replace("\r\n", "\n") for text in TEXTS
        }


def test_one_document_is_cut_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgrn2.data.units.BLOCK", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "long " * 500}))
    for processes in (1, 2):
        prepare([tmp_path / "a.jsonl"], tmp_path / f"{processes}", "bytes", processes=processes, valid_fraction=0.3)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    assert Corpus.open(tmp_path / "2", "valid").text_bytes == 750


def test_errors_of_a_process_name_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgrn2.data.units.BLOCK", 50)
    rows = [json.dumps({"text": "x" * 20})] * 9
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"text": 5}', *rows]))
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"a\.jsonl:10: field 'text' is not text"):
            prepare([tmp_path / "a.jsonl"], tmp_path / "out", "bytes", processes=processes)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="processes must lie in"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "out", "bytes", processes=-1)


def test_zstandard_that_is_cut_off_or_damaged(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = "".join(f"line {n * n}\n" for n in range(9_000))
    whole = zstandard.compress(text.encode())
    path = tmp_path / "a.txt.zst"
    path.write_bytes(whole + zstandard.compress(b"end"))
    assert list(Sources([path]).documents()) == [text + "end"]
    for data in (whole[:-7], whole[: len(whole) // 2], b"no such thing", whole[:40] + b"\xff" * 40 + whole[80:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.txt\.zst is damaged or is not \.zst data"):
            Sources([path]).survey()


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["one", "two"], "n": [1, 2]}), path)
    assert list(Sources([path], "body").documents()) == ["one", "two"]
    with pytest.raises(UserError, match=r"a\.parquet: there is no column 'text' \(columns: body, n\)"):
        Sources([path]).survey()
    with pytest.raises(UserError, match="column 'n' is int64, not text"):
        Sources([path], "n").survey()
    with pytest.raises(UserError, match="each row is a document already"):
        Sources([path], "body", split="lines")
    data = path.read_bytes()
    for broken in (data[:-9], data[:4] + b"\0" * 60 + data[64:], b"PAR1"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.parquet is damaged or is not Parquet"):
            Sources([path], "body").survey()


def test_data_sets_of_the_library(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"text": ["one", None, "two"], "n": [1, 2, 3]})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=one.select([0])).save_to_disk(tmp_path / "two")
    assert list(Sources([tmp_path / "one"]).documents()) == ["one", "two"]
    assert list(Sources([f"hf:{tmp_path}/two:test", write_lines(["three"])]).documents()) == ["one", "three"]
    prepare([f"hf:{tmp_path}/two:train"], tmp_path / "out", "bytes", valid=[f"hf:{tmp_path}/two:test"])
    assert Corpus.open(tmp_path / "out", "valid").text_bytes == 3
    for spec, field, message in (
        (f"{tmp_path}/two", "text", "has splits; choose one: hf:.*/two:SPLIT, of train, test"),
        (f"hf:{tmp_path}/two:dev", "text", "has no split 'dev'; it has train, test"),
        (f"hf:{tmp_path}/one:train", "text", "has no splits: leave out 'train'"),
        (f"hf:{tmp_path}:train", "text", "is not a data set that the datasets library saved"),
        (f"{tmp_path}/one", "body", r"there is no column 'body' \(columns: text, n\)"),
        (f"{tmp_path}/one", "n", "column 'n' is not text"),
        ("hf:", "text", "write hf:NAME"),
        ("hf:a/b:c:d:e", "text", "write hf:NAME"),
    ):
        with pytest.raises(UserError, match=message):
            Sources([spec], field).survey()
    with pytest.raises(UserError, match="is both trained on and held out"):
        prepare([f"hf:{tmp_path}/two:test"], tmp_path / "no", "bytes", valid=[f"hf:{tmp_path}/two:test"])


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"hf:nobody/nothing:train cannot be read: Couldn't reach .* \(offline\)$"):
        Sources(["hf:nobody/nothing:train"]).survey()


@pytest.mark.parametrize(
    ("name", "library"),
    [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow"), ("saved", "datasets"), ("a.model", "sentencepiece"),
     ("a.tiktoken", "tiktoken")],
)  # fmt: skip
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    path = tmp_path / name
    if name == "saved":
        path.mkdir()
        (path / "dataset_info.json").write_text("{}")
    else:
        path.write_bytes(b"\x0a\x03\x0a\x01a" if name == "a.model" else BYTES if name == "a.tiktoken" else b"data")
    (tmp_path / "a.json").write_text('{"pattern": "."}')
    extra = "data" if library in ("zstandard", "pyarrow", "datasets") else library
    with pytest.raises(UserError, match=rf"needs (the )?{library}.*: pip install hgrn2\[{extra}\]"):
        load_tokenizer(path) if extra == library else Sources([path]).survey()


BYTES = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="child processes are looked up in /proc")
def test_ctrl_c_and_a_kill_leave_no_process(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": "hello " * 2000}) + "\n") * 1500)
    command = [
        sys.executable, "-m", "hgrn2", "data", "prepare", f"{tmp_path}/a.jsonl", "--out", f"{tmp_path}/out",
        "--tokenizer", "bytes", "--processes", "2",
    ]  # fmt: skip
    for end in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "reading\n"  # the first answers have come
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
        process.send_signal(end)
        process.wait(30)
        process.stderr.close()
        assert not (tmp_path / "out").exists()
        left = [child for child in children if not _ends(int(child))]
        assert not left
    assert sorted(file.name for file in tmp_path.iterdir())[-1] == "a.jsonl"  # beside what the kill left: hidden names
    prepare([tmp_path / "a.jsonl"], tmp_path / "out", "bytes", valid_fraction=0.5, processes=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "out"]


def _ends(child: int) -> bool:
    for _ in range(300):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][:3]:
            return True
        time.sleep(0.1)
    return False
