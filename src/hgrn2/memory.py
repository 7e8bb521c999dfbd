"""What fits into this machine's memory, asked before anything is allocated. No torch is imported here.

Only what surely does not fit is refused: the bytes that are asked for are a lower bound, and they are held against all
memory of the machine (or of the control group or limit that the process runs under), not against what is free now.
"""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.gpu import gpu

UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB", "EB")
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def readable(count: int) -> str:
    """Bytes for people, in powers of 1,000: `3.2 TB`."""
    value, unit = float(min(count, 10**300)), UNITS[0]
    for unit in UNITS:
        if value < 999.5 or unit == UNITS[-1]:
            break
        value /= 1000
    if unit == UNITS[0]:
        return f"{count} {unit}"
    return f"{value:.3g} {unit}" if value < 1e6 else f"{value:.1e} {unit}"


def machine_memory() -> int | None:
    """Bytes of memory that processes may use here in all; None where the system does not say."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CGROUPS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no control group, or "max"
            continue
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [limit] if limit != resource.RLIM_INFINITY else []
    except (ImportError, OSError):
        pass
    return min((one for one in found if one > 0), default=None)


def process_peak() -> int | None:
    """Bytes of this process that were resident at most; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found * (1 if sys.platform == "darwin" else 1024)  # bytes there, KB elsewhere


def refuse_too_big(count: int, what: str, hint: str = "", *, device: Any = "cpu") -> None:
    """Refuse what needs more bytes than the device has.

    Args:
        count: a lower bound of the bytes.
        what: the beginning of the message, such as `this model needs`.
        hint: the end of the message: what to make smaller.
        device: a torch.device or its name; other kinds than cpu and cuda are not judged.

    Raises:
        UserError: `this model needs 3.2 TB; this machine has 24 GB`.
    """
    kind = str(device).partition(":")[0]
    if kind == "cuda" and (found := gpu(device)) is not None:
        limit, where = found.memory, "this GPU"
    elif kind == "cpu":
        limit, where = machine_memory(), "this machine"
    else:
        return
    if limit is not None and count > limit:
        raise UserError(f"{what} {readable(count)}; {where} has {readable(limit)}{f': {hint}' if hint else ''}")


_ASKED = re.compile(r"allocate (\d+) bytes|allocate ([\d.]+ \w+)", re.IGNORECASE)
_NO_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "size calculation overflowed", "array is too big",
    "multiplication overflow", "Maximum allowed dimension", "Overflow when unpacking",
)  # fmt: skip


def out_of_memory(error: BaseException) -> str | None:
    """One line for people about an allocation that failed; None where the error is something else."""
    text = str(error)
    if not isinstance(error, MemoryError) and not any(mark.lower() in text.lower() for mark in _NO_MEMORY):
        return None
    asked = _ASKED.search(text)
    size = (readable(int(asked[1])) if asked[1] else asked[2]) if asked else ""
    wanted = f" for {size}" if size else ""
    limit = machine_memory()
    has = "" if limit is None or "cuda" in text.lower() else f"; this machine has {readable(limit)}"
    return f"memory does not suffice{wanted}{has}: make the model, the batch or the length smaller"
