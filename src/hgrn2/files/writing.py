"""Atomic writes: a reader sees the old content or the new, never half of either, whenever the process dies."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.files.folders import clean, exchange, present, reported, reserve, restored
from hgrn2.files.locks import lock_file
from hgrn2.files.names import lock_name

_MAKING: ContextVar[frozenset[Path]] = ContextVar("folders that this thread is making", default=frozenset())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A place to write a file to; it takes `path`'s place when the block ends without an error.

    The place has `path`'s own name in a temporary folder beside it, so that whatever a library writes beside its file
    goes the same way. It is flushed to disk before the rename. What earlier processes abandoned there is removed.

    Raises:
        UserError: it cannot be written (a full disk, no permission), or there is something else than a file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; it is not replaced")
    with _temporary(path, file=True) as folder:
        yield folder / path.name
        _settle(folder)
        os.replace(folder / path.name, path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error.

    Begin it before long work: a place that is taken, cannot be written or is being made by another process is refused
    at once. With `replace` a folder that is there stays until the new one is complete, and then makes way in one step.
    On an error nothing is left and nothing else is touched.

    Raises:
        UserError: `path` exists (without `replace`), is a link to nothing, or cannot be written.
    """
    path = _real(path)
    with making(path, replace=replace), _temporary(path) as folder:
        yield folder
        _settle(folder)
        if path.exists():
            shutil.rmtree(exchange(folder, path), ignore_errors=True)
        else:
            os.rename(folder, path)
        _sync(path.parent)


@contextlib.contextmanager
def making(path: Path, *, replace: bool = False) -> Iterator[None]:
    """Around all the work that ends in `atomic_folder(path)`: its place is looked at now, and nobody else's meanwhile.

    Raises:
        UserError: `path` exists (without `replace`), is a link to nothing, cannot be written, or another process is
            making it.
    """
    path = _real(path)
    if path in _MAKING.get():
        yield
        return
    with contextlib.ExitStack() as stack:
        _refuse_taken(path, replace)
        with reported(path):
            stack.enter_context(present(path.parent))
            stack.enter_context(lock_file(lock_name(path), path))
        _refuse_taken(path, replace)  # again, now that nobody else makes it
        token = _MAKING.set(_MAKING.get() | {path})
        stack.callback(_MAKING.reset, token)
        yield


def _real(path: Path) -> Path:
    """The path as it is locked: absolute, and of a link to a folder that folder."""
    path = Path(path)
    return path.resolve() if path.is_symlink() and path.exists() else Path(os.path.abspath(path))


def _refuse_taken(path: Path, replace: bool) -> None:
    restored(path)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to nothing; choose another name")
    if path.exists() and not (replace and path.is_dir()):
        raise UserError(f"{path} already exists; it is not overwritten")


@contextlib.contextmanager
def _temporary(path: Path, *, file: bool = False) -> Iterator[Path]:
    """A folder with a temporary name beside `path`, gone in the end; errors of writing name `path`.

    It will become `path`, or, with `file`, holds the file that will.
    """
    with contextlib.ExitStack() as stack:
        with reported(path):
            stack.enter_context(present(path.parent))
            clean(path.parent)
            folder, handle = reserve(path)
        try:
            yield folder
        except UserError as error:
            shown = str(error).replace(str(folder / path.name), str(path)) if file else str(error)
            raise UserError(shown.replace(str(folder), str(path))) from None  # nobody knows the temporary name
        except OSError as error:
            # Another file that could not be read says so itself; what has no name, or a temporary one, is ours.
            if error.filename is None or str(folder) in str(error.filename):
                raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if handle is not None:
                os.close(handle)


def _settle(folder: Path) -> None:
    """Give everything in a folder the user's usual permissions (some writers give none) and flush it to disk."""
    umask = os.umask(0)
    os.umask(umask)
    for place, _, files in os.walk(folder):
        for name in files:
            file = os.path.join(place, name)
            if not os.path.islink(file):
                os.chmod(file, 0o666 & ~umask)
                handle = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        os.chmod(place, 0o777 & ~umask)


def _sync(folder: Path) -> None:
    """Flush a folder's list of names, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write text atomically (UTF-8; `?` stands for what is no character, as in a file's name that is not UTF-8)."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # The name of a file that is not UTF-8 holds halves of surrogate pairs; JSON's escapes bring them back.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))
