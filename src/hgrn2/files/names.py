"""The names of what is not complete yet, told apart from everything else in a folder.

.NAME.XXXXXXXX.hgrn2.tmp    a folder in which NAME is being written
.NAME.XXXXXXXX.hgrn2.old    NAME while another folder takes its place, where that cannot be done in one step
.hgrn2.lock                 held by the process that works in this folder
.NAME.hgrn2.lock            held by the process that makes the folder NAME beside it
"""

import hashlib
import re
import secrets
from pathlib import Path

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.hgrn2\.(?P<kind>tmp|old)", re.DOTALL)
LOCK = ".hgrn2.lock"
_LONGEST = 200  # bytes of a name that still leave place for ours: file systems allow 255


def temporary_name(path: Path, kind: str = "tmp") -> Path:
    """A new name beside `path`."""
    return path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.hgrn2.{kind}")


def lock_name(path: Path) -> Path:
    """The lock of a folder that is made beside others."""
    return path.with_name(f".{_short(path.name)}{LOCK}")


def put_aside(path: Path) -> list[Path]:
    """What took the place of `path` has not come: where its earlier content waits."""
    try:
        found = [(entry, TEMPORARY.fullmatch(entry.name)) for entry in path.parent.iterdir()]
    except OSError:
        return []
    short = _short(path.name)
    return [entry for entry, match in found if match and match["kind"] == "old" and match["name"] == short]


def is_ours(name: str) -> bool:
    """Whether a name is a temporary one or a lock of this package."""
    return TEMPORARY.fullmatch(name) is not None or (name.startswith(".") and name.endswith(LOCK))


def holds_nothing(folder: Path) -> bool:
    """Whether a folder is missing or empty, but for what an interrupted command left."""
    return not folder.exists() or all(is_ours(entry.name) for entry in folder.iterdir())


def _short(name: str) -> str:
    data = name.encode(errors="surrogateescape")
    if len(data) <= _LONGEST:
        return name
    return f"{data[:100].decode(errors='ignore')}-{hashlib.sha256(data).hexdigest()[:16]}"
