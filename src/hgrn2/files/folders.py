"""Working in folders: one process at a time, cleaned of what others abandoned, and exchanged for others in one step."""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.files.locks import abandoned, lock_file, open_folder, still_there, try_lock, wait_lock
from hgrn2.files.names import LOCK, TEMPORARY, is_ours, put_aside, temporary_name

_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Around writing: a full disk, a read-only folder and the like become a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder, which is made where it is missing.

    What interrupted commands left in it is removed; a folder that was made for nothing is removed again.

    Raises:
        UserError: another process is at work there (its number is told), a file or a link to nothing in its place, a
            folder that cannot be written.
    """
    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        what = "a file" if folder.exists() else "a link to nothing"
        raise UserError(f"{folder} is {what}; --out must name a folder")
    with contextlib.ExitStack() as stack:
        with reported(folder):
            stack.enter_context(present(folder))
            stack.enter_context(lock_file(folder / LOCK, folder))
            clean(folder)
        yield


@contextlib.contextmanager
def present(folder: Path) -> Iterator[None]:
    """Make a folder and those above it where they are missing; what was made for nothing is removed again."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty: all is well
            for place in missing:
                place.rmdir()


def reserve(path: Path) -> tuple[Path, int | None]:
    """A new empty folder with a temporary name beside `path`, and a handle that holds its lock."""
    while True:
        temporary = temporary_name(path)
        temporary.mkdir(mode=0o700)
        try:
            handle = open_folder(temporary)
        except FileNotFoundError:
            continue
        if handle is None:
            return temporary, None
        # Between its birth and its lock another process may have taken it for abandoned.
        if try_lock(handle) is not False and still_there(handle, temporary):
            return temporary, handle
        os.close(handle)


def clean(folder: Path) -> None:
    """Remove what dead processes left unfinished in a folder, and put back what was to be replaced and was not.

    What a living process is writing stays: it holds a lock.
    """
    with contextlib.suppress(OSError):
        for entry in [entry for entry in folder.iterdir() if is_ours(entry.name)]:
            handle = abandoned(entry)
            if handle is None:
                continue
            match = TEMPORARY.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if match is None:
                    entry.unlink()  # a lock that nobody holds
                elif match["kind"] == "old" and not os.path.lexists(folder / match["name"]):
                    os.rename(entry, folder / match["name"])
                else:
                    shutil.rmtree(entry, ignore_errors=True)
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder; a folder first gets a temporary name, for a half-removed one must not look whole."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed, handle = reserve(path)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    if handle is not None:
        os.close(handle)


def restored(path: Path) -> Path:
    """The same path. Where a folder should be that was being replaced when the process died, it is put back first."""
    path = Path(path)
    if not os.path.lexists(path):
        for old in put_aside(path):
            with contextlib.suppress(OSError), _waiting(old):
                if not os.path.lexists(path):
                    os.rename(old, path)
    return path


def exchange(fresh: Path, path: Path) -> Path:
    """Put the folder `fresh` in the place of the folder `path`; returns where the old content now lies.

    In one step where the system has one. Elsewhere the old content has a name that `restored` knows between the two.
    """
    if _in_one_step(fresh, path):
        return fresh
    old = temporary_name(path, "old")
    with _waiting(path):
        os.rename(path, old)
        try:
            os.rename(fresh, path)
        except OSError:
            os.rename(old, path)
            raise
    return old


@contextlib.contextmanager
def _waiting(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which others have for moments only."""
    handle = open_folder(folder)
    if handle is None:
        yield
        return
    try:
        wait_lock(handle)
        yield
    finally:
        os.close(handle)


def _in_one_step(first: Path, second: Path) -> bool:
    """Exchange two folders; False where the system or the file system cannot."""
    try:
        library: Any = ctypes.CDLL(None)
        one, other = os.fsencode(first), os.fsencode(second)
        if sys.platform == "darwin":
            return library.renamex_np(one, other, _RENAME_SWAP) == 0
        return library.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):
        return False
