"""States as rows of bytes: a fixed piece of memory for as many as fit, and files for those that had to leave it.

A state goes in and out as a copy. Files are this process's own, checked by a checksum when they are read, and nobody
finds them after it: they lie in a temporary folder whose name tells whose it is.
"""

import contextlib
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from hgrn2.layers.state import ModelState

PREFIX = "hgrn2-prefix-"


class StateRows:
    """Room for a number of states of one model, each of one sequence."""

    def __init__(self, like: ModelState, limit: int) -> None:
        """`like`: a state of one sequence; `limit`: bytes of memory at most."""
        self._like = like.to("cpu")
        self.nbytes = like.nbytes
        count = limit // max(1, self.nbytes)
        self._memory = torch.zeros(count, self.nbytes, dtype=torch.uint8)
        self._free = list(range(count))[::-1]
        self.count = count

    @property
    def full(self) -> bool:
        """Whether a row must be freed before the next `put`."""
        return not self._free

    def put(self, state: ModelState) -> int:
        """Copy a state into a free row; which one."""
        row = self._free.pop()
        self.write(row, state)
        return row

    def write(self, row: int, state: ModelState) -> None:
        """Copy a state over a row in use."""
        at = 0
        for tensor in state.tensors().values():
            flat = _bytes(tensor.detach().to("cpu"))
            self._memory[row, at : at + flat.numel()] = flat
            at += flat.numel()

    def get(self, row: int) -> ModelState:
        """A copy of the state in a row."""
        return self._state(self._memory[row].clone())

    def free(self, row: int) -> None:
        """Let a row go."""
        self._free.append(row)

    def spill(self, row: int, path: Path) -> int:
        """Write a row to a file; returns its checksum."""
        data = self._memory[row].numpy().tobytes()
        path.write_bytes(data)
        return zlib.crc32(data)

    def read(self, path: Path, checksum: int) -> ModelState | None:
        """The state in a file of `spill`; None where it is not what was written."""
        try:
            data = bytearray(path.read_bytes())
        except OSError:
            return None
        if len(data) != self.nbytes or zlib.crc32(data) != checksum:
            return None
        return self._state(torch.frombuffer(data, dtype=torch.uint8))

    def _state(self, flat: Tensor) -> ModelState:
        named, at = {}, 0
        for name, like in self._like.tensors().items():
            size = like.numel() * like.element_size()
            named[name] = flat[at : at + size].view(like.dtype).view(like.shape)
            at += size
        return ModelState.from_tensors(named, self._like)


def _bytes(tensor: Tensor) -> Tensor:
    """A tensor's bytes [n] uint8, complex numbers as they lie in memory."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.contiguous().reshape(-1).view(torch.uint8)


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
