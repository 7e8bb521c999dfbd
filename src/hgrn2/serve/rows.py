"""States as bytes within a limit of memory, and as files of those that had to leave it.

A state goes in and out as a copy. States of constant size have one piece of memory that is taken once, so that nothing
is broken into pieces over many requests; those that grow with their text take what they need.

Files are this process's own, checked by a checksum when they are read, and nobody finds them after it: they lie in a
temporary folder whose name tells whose it is.
"""

import contextlib
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from hgrn2.generate.compact import Held, StateBytes
from hgrn2.layers.state import ModelState

PREFIX = "hgrn2-prefix-"


class StateRows:
    """Memory for states of one model, each of one sequence."""

    def __init__(self, like: ModelState, limit: int, held: Held = "exact") -> None:
        """`like`: a state of one sequence; `limit`: bytes of memory at most; `held`: in which precision."""
        self._code, self.limit, self.used = StateBytes(like, held), limit, 0
        self.exact = held == "exact"
        self.grows = self._code.size(1) != self._code.size(2)
        count = 0 if self.grows else limit // max(1, self._code.size(1))
        self._memory = torch.zeros(count, self._code.size(1) if count else 0, dtype=torch.uint8)
        self._free = list(range(count))[::-1]
        self._grown: dict[int, Tensor] = {}
        self._names = 0

    def size(self, tokens: int) -> int:
        """Bytes of a state that has read so many tokens."""
        return self._code.size(tokens)

    def holds(self, tokens: int) -> bool:
        """Whether such a state fits at all."""
        return self.size(tokens) <= self.limit

    def full(self, tokens: int) -> bool:
        """Whether others must be freed before the next `put` of such a state."""
        return self.used + self.size(tokens) > self.limit

    def put(self, state: ModelState, tokens: int) -> int:
        """Copy a state that has read so many tokens; in which row."""
        data = self._code.pack(state)
        assert data.numel() == self.size(tokens)
        self.used += data.numel()
        if not self.grows:
            row = self._free.pop()
            self._memory[row] = data
            return row
        self._names += 1
        self._grown[self._names] = data
        return self._names

    def get(self, row: int, tokens: int) -> ModelState:
        """A copy of the state in a row."""
        return self._code.unpack(self._row(row).clone(), tokens)

    def free(self, row: int) -> None:
        """Let a row go."""
        self.used -= self._row(row).numel()
        if self.grows:
            del self._grown[row]
        else:
            self._free.append(row)

    def spill(self, row: int, path: Path) -> int:
        """Write a row to a file; returns its checksum."""
        data = self._row(row).numpy().tobytes()
        path.write_bytes(data)
        return zlib.crc32(data)

    def read(self, path: Path, checksum: int, tokens: int) -> ModelState | None:
        """The state in a file of `spill`; None where it is not what was written."""
        try:
            data = bytearray(path.read_bytes())
        except OSError:
            return None
        if len(data) != self.size(tokens) or zlib.crc32(data) != checksum:
            return None
        return self._code.unpack(torch.frombuffer(data, dtype=torch.uint8), tokens)

    def _row(self, row: int) -> Tensor:
        return self._grown[row] if self.grows else self._memory[row]


def spill_folder() -> Path:
    """A new folder for files of this process; those of processes that are dead are removed."""
    place = Path(tempfile.gettempdir())
    for old in place.glob(f"{PREFIX}*"):
        owner = old.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def _alive(process: int) -> bool:
    with contextlib.suppress(OSError, OverflowError):
        os.kill(process, 0)
        return True
    return Path(f"/proc/{process}").exists()
