"""Settings of the process that make training on a CPU faster; no effect on results."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep large freed blocks instead of handing them back to the system.

    A training step allocates and frees the same megabytes over and over; each hand-back costs page faults at the next
    use. docs/log.md has what it was seen to save.
    Returns whether it took effect; other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(name, value) == 1 for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 28))
    )
