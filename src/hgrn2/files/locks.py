"""Locks that end with their process: `flock` on an open file or folder, which the system releases even after SIGKILL.

Where there are none (Windows; some network file systems), a note says so, nothing is refused, and what an earlier
process left is taken for abandoned after a day.
"""

import contextlib
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hgrn2.errors import UserError
from hgrn2.files.names import LOCK

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

ABANDONED_S = 86_400.0
"""Age from which a temporary name counts as abandoned where no lock can tell."""
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder: True, False where another process has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def wait_lock(handle: int) -> None:
    """Lock an open folder as soon as nobody else has it; where there are no locks at once."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)


def open_folder(path: Path) -> int | None:
    """A handle of a folder that can be locked; None on systems that have none."""
    return None if fcntl is None else os.open(path, _DIRECTORY)


def still_there(handle: int, path: Path) -> bool:
    """Whether `path` is still what was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


def abandoned(path: Path) -> int | None:
    """A handle that holds the lock of a temporary folder, or of a lock file, whose process is gone; None where it is in
    use, or is neither.

    Without locks its age decides, and the handle, if there is one, holds nothing. The caller closes it.
    """
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
        if kind != (stat.S_IFREG if path.name.endswith(LOCK) else stat.S_IFDIR):
            return None
        if fcntl is None:
            return os.open(os.devnull, os.O_RDONLY) if _old(path) else None
        handle = os.open(path, os.O_RDWR if kind == stat.S_IFREG else _DIRECTORY)
    except OSError:
        return None
    free = try_lock(handle)
    if still_there(handle, path) and (free or (free is None and _old(path))):
        return handle
    os.close(handle)
    return None


def _old(path: Path) -> bool:
    return time.time() - os.lstat(path).st_mtime > ABANDONED_S


@contextlib.contextmanager
def lock_file(path: Path, what: Path) -> Iterator[None]:
    """Hold a lock file, which is made and removed again; held by another process, `what` is refused as in use."""
    handle = _acquire(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
        os.close(handle)


def _acquire(path: Path, what: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        handle = os.open(path, flags, 0o666)
        free = try_lock(handle)
        if free is False:
            holder = _holder(handle)
            os.close(handle)
            raise UserError(f"{what} is in use by {holder}; wait until it has ended, or choose another --out")
        if still_there(handle, path) or fcntl is None:
            break
        os.close(handle)  # its holder removed it between our opening and locking
    if free is None:
        print(f"note: {what} cannot be locked here; see that no other command writes there", file=sys.stderr)
    os.truncate(handle, 0)
    os.write(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode())
    return handle


def _holder(handle: int) -> str:
    """Who holds a lock file; its process may be just about to write that down."""
    for _ in range(20):
        os.lseek(handle, 0, os.SEEK_SET)
        if text := os.read(handle, 300).decode(errors="replace").strip():
            return f"process {text}"
        time.sleep(0.01)
    return "another process"
