"""Files and folders: whole or absent, one process at a time, regular files only, JSON within bounds."""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hgrn2 import files
from hgrn2.errors import UserError
from hgrn2.files import folders, locks
from hgrn2.files.names import LOCK, lock_name, temporary_name

NAMES = ["plain", "x" * 250, "ünï", os.fsdecode(b"not\xff utf8")]

HOLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"{os.getpid()} on here")
file.flush()
print(flush=True)
sys.stdin.read()
"""


def text_in(folder: Path) -> str:
    return (folder / "f").read_text()


def fill(folder: Path, text: str, **options: bool) -> None:
    with files.atomic_folder(folder, **options) as inside:
        (inside / "f").write_text(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_and_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "one")
    files.write_text(tmp_path / name, "two")
    assert files.read_text(tmp_path / name) == "two"
    (tmp_path / name).unlink()
    fill(tmp_path / name, "one")
    fill(tmp_path / name, "two", replace=True)
    assert text_in(tmp_path / name) == "two"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_replacing_never_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    if not in_one_step:
        monkeypatch.setattr(folders, "_in_one_step", lambda *_: False)
    fill(out, "new", replace=True)
    assert text_in(out) == "new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "x" * 250])
def test_what_was_put_aside_is_found_again(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    fill(out, "old")
    os.rename(out, temporary_name(out, "old"))  # killed between the two renames
    assert text_in(files.restored(out)) == "old"
    os.rename(out, temporary_name(out, "old"))
    with pytest.raises(UserError, match="already exists"):
        fill(out, "new")
    fill(out, "new", replace=True)
    assert os.listdir(tmp_path) == [name]
    assert text_in(out) == "new"


def test_what_was_abandoned_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [".out.12345678.tmp", ".mine.tmp", ".out.hgrn2.tmp", "out.12345678.hgrn2.tmp"]
    for name in [*kept, ".a.12345678.hgrn2.tmp", ".b.87654321.hgrn2.old", ".c.00000000.hgrn2.old"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    (tmp_path / "c").mkdir()
    (tmp_path / ".d.12345678.hgrn2.tmp").write_text("a file of somebody's")
    lock_name(tmp_path / "dead").write_text("1 on here")
    with files.atomic_folder(tmp_path / "living") as living:
        files.clean(tmp_path)
        assert living.is_dir()
        assert lock_name(tmp_path / "living").exists()
    files.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "b", "c", "living", ".d.12345678.hgrn2.tmp"}
    assert text_in(tmp_path / "b") == ".b.87654321.hgrn2.old"


def test_without_locks_only_what_is_a_day_old_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    for name in ("old", "young"):
        (tmp_path / f".{name}.12345678.hgrn2.tmp").mkdir()
    os.utime(tmp_path / ".old.12345678.hgrn2.tmp", (0, 0))
    with files.owned(tmp_path):
        fill(tmp_path / "out", "text")
    assert "cannot be locked here" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {".young.12345678.hgrn2.tmp", "out"}


def test_a_folder_in_use_is_refused_with_the_process(tmp_path: Path) -> None:
    for use, lock in ((files.owned, tmp_path / "run" / LOCK), (files.making, lock_name(tmp_path / "run"))):
        lock.parent.mkdir(exist_ok=True)
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)  # fmt: skip
        assert holder.stdout is not None
        holder.stdout.readline()
        if use is files.making:
            (tmp_path / "run").rmdir()
        with pytest.raises(UserError, match=rf"run is in use by process {holder.pid} on here"), use(tmp_path / "run"):
            pass
        holder.kill()
        holder.communicate()
        with use(tmp_path / "run"):  # the lock ended with its process
            assert lock.read_text() == f"{os.getpid()} on {socket.gethostname()}\n"
        assert not lock.exists()


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with files.owned(tmp_path / "run"), pytest.raises(UserError, match=f"in use by process {os.getpid()} "), \
            files.owned(tmp_path / "run"):  # fmt: skip
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.symlink_to(p.with_name("nowhere")), "is a link to nothing"),
        (lambda p: p.write_text(""), "already exists"),
        (lambda p: p.mkdir(), "already exists"),
    ],
)
def test_a_place_that_is_taken(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        fill(tmp_path / "out", "text")
    with pytest.raises(UserError, match="cannot be written"):
        fill(Path("/proc/nothing/out"), "text")


def full_disk(path: Path, name: Path | None = None) -> None:
    """Write a folder on a disk that is full by its second file."""
    with files.atomic_folder(path) as folder:
        files.write_text(folder / "a" / "b.txt", "text")
        with files.atomic_path(folder / "c.bin") as place:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(name or place)] if name != path else []))


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (None, out):  # an error with the name that was opened, and one without any
        with pytest.raises(UserError) as told:
            full_disk(out, name)
        assert str(told.value) == f"{out}/c.bin cannot be written: No space left on device"
    with pytest.raises(OSError, match=r"No space left on device: 'input\.txt'"):  # of another file: that is its own
        full_disk(out, Path("input.txt"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_device_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    for path in (Path("/dev/full"), Path("/dev/null")):
        with pytest.raises(UserError, match="is not a regular file; it is not replaced"):
            files.write_text(path, "text")
        with pytest.raises(UserError, match="is a device, not a regular file"):
            files.read_bytes(path)


def test_pipes_sockets_and_folders_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        monkeypatch.chdir(tmp_path)  # a socket's name has at most a hundred bytes
        made.bind("socket")
    for name, what in (("pipe", "a pipe"), ("socket", "a socket"), (".", "a folder")):
        for read in (files.read_json, files.read_text, files.sha256):
            with pytest.raises(UserError, match=f"is {what}, not a"):
                read(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        files.read_json(tmp_path / "gone")
    with pytest.raises(UserError, match="null byte"):
        files.read_json(tmp_path / "a\0b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 70 + "]" * 70, "nested more than 64 deep"),
        ("9" * 5000, "a whole number of 5,000 digits"),
        ('{"a": -' + "9" * 41 + "}", "a whole number of 42 digits"),
        ("null", "must hold an object, not null"),
        ("[]", "must hold an object, not a list"),
        ("3", "must hold an object, not a number"),
        ("", "is not valid JSON"),
        ('{"a": 1', "is not valid JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
    ],
)
def test_json_out_of_bounds(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as told:
        files.read_json(path, dict)
    assert str(told.value).startswith(str(path))
    assert len(str(told.value)) < 300


def test_json_within_bounds(tmp_path: Path) -> None:
    value = {"a": int("9" * 40), "b": ["\udcff", "é\U0001f600"], "c": [[1.5, None, True]]}
    files.write_json(tmp_path / "f.json", value)
    assert files.read_json(tmp_path / "f.json", dict) == value
    assert b"\\udcff" in (tmp_path / "f.json").read_bytes()
    assert files.parse_json("\ufeff[1]".encode(), "x", list) == [1]
    assert files.parse_json(json.dumps({"n": 1}), "x") == {"n": 1}
    assert files.parse_json('{"n": ' + "9" * 5000 + "}", "x", dict, any_number=True)["n"] == "9" * 5000
    with pytest.raises(UserError, match="has more than 3 bytes"):
        files.read_json(tmp_path / "f.json", limit=3)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "a\\b", None, 3])
def test_names_in_manifests(name: object) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: .* is not a plain file name"):
        files.listed_name(name, "manifest.json")
    assert files.listed_name("a.bin", "manifest.json") == "a.bin"


def test_a_folder_of_ours_counts_as_empty(tmp_path: Path) -> None:
    assert files.holds_nothing(tmp_path / "none")
    (tmp_path / ".config.json.12345678.hgrn2.tmp").mkdir()
    (tmp_path / LOCK).write_text("1 on here")
    assert files.holds_nothing(tmp_path)
    (tmp_path / "letter").write_text("dear")
    assert not files.holds_nothing(tmp_path)
