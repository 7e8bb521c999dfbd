"""Kernels known to be bad on this machine: `hgrn2 doctor` writes them down, `backend="auto"` avoids them.

A record names the operator, the backend and everything that the result depended on: the device, the versions of hgrn2,
torch and triton, the CUDA version, and for native the built library. Where any of them is another one now, the record
says nothing and is passed over. The records are one JSON file in the folder where native kernels are kept.
"""

import functools
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from hgrn2.files import write_json
from hgrn2.gpu import gpu
from hgrn2.ops.cache import trusted_folder

FILE = "distrusted.json"
"""The name under which earlier versions wrote it too."""


class Placed(Protocol):
    """A backend, as far as it is known here."""

    name: ClassVar[str]

    def place(self) -> dict[str, str]:
        """All that its results may depend on besides inputs, device and versions."""
        ...


@dataclass(frozen=True)
class Record:
    """One operator on one backend that was wrong, and where."""

    op: str
    backend: str
    place: dict[str, str]
    """What `place_of` said when it was found."""
    what: str
    """How wrong it was."""
    date: str
    """UTC."""


def place_of(backend: Placed, device: torch.device) -> dict[str, str]:
    """All that a kernel's results may depend on besides its inputs."""
    place = {"hgrn2": version("hgrn2"), "torch": torch.__version__, "cuda": torch.version.cuda or ""}
    found = gpu(device)
    place["device"] = found.name if found else f"{device.type} {platform.machine()}"
    return {**place, **backend.place()}


@functools.cache  # asked at every call of an operator
def reason(op: str, backend: Placed, device: torch.device) -> str:
    """Why `auto` must not use a backend for an operator here, as a sentence; empty where nothing speaks against it."""
    found = [record for record in records() if (record.op, record.backend) == (op, backend.name)]
    if not found:
        return ""
    here = place_of(backend, device)
    for record in found:
        if record.place == here:
            return f"hgrn2 doctor found {op} wrong on {backend.name} here ({record.date}: {record.what})"
    return ""


def records() -> list[Record]:
    """All records, those of other places included; a file that cannot be understood holds none."""
    path = _file()
    if path is None or not path.exists():
        return []
    try:
        return [Record(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def remember(
    wrong: Iterable[tuple[str, Placed, torch.device, str]], right: Iterable[tuple[str, Placed, torch.device]]
) -> bool:
    """Replace what is known of these (operator, backend, device): wrong ones with how wrong, right ones are trusted.

    Returns whether it could be kept: False without a cache folder to which only this user can write.
    """
    path = _file()
    if path is None:
        return False
    wrong = list(wrong)
    settled = [(op, backend.name, place_of(backend, device)) for op, backend, device in right]
    settled += [(op, backend.name, place_of(backend, device)) for op, backend, device, _ in wrong]
    kept = [record for record in records() if (record.op, record.backend, record.place) not in settled]
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    kept += [Record(op, backend.name, place_of(backend, device), what, date) for op, backend, device, what in wrong]
    if kept:
        write_json(path, [asdict(record) for record in kept])
    else:
        path.unlink(missing_ok=True)
    reason.cache_clear()
    return True


def forget() -> int:
    """Trust everything again; returns how many records there were."""
    path, known = _file(), len(records())
    if path is not None:
        path.unlink(missing_ok=True)
    reason.cache_clear()
    return known


def _file() -> Path | None:
    folder = trusted_folder()
    return None if folder is None else folder / FILE


@functools.cache
def version(package: str) -> str:
    """Of an installed package; empty where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
