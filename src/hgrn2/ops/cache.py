"""The folder in which built kernels and what is known of them are kept; what others could write there is not used."""

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """Where built kernels are kept: $HGRN2_CACHE, else the user's cache folder."""
    if named := os.environ.get("HGRN2_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "hgrn2"


def private(path: Path) -> bool:
    """Whether only this user can write to it: what lies there is executed."""
    info = path.stat()
    return info.st_uid == os.getuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def trusted_folder() -> Path | None:
    """The cache folder, made if need be; None where it cannot be had or others can write to it."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder if private(folder) and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
