"""What this machine is: devices, versions, and which backend `auto` takes for what, with the reason."""

import shutil
from typing import Any

import torch

from hgrn2.doctor.checks import OPS
from hgrn2.environment import environment
from hgrn2.errors import UserError
from hgrn2.gpu import gpu
from hgrn2.models.saved import usable_device
from hgrn2.ops import backend as backends

HEAD = 128
"""Channels of a head, K and V, for which the choice is shown: that of every published language model."""
_REAL = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def devices(wanted: str) -> list[torch.device]:
    """cpu, cuda or cuda:N; auto is the CPU and one GPU of each kind.

    Raises:
        UserError: no such device here.
    """
    if wanted != "auto":
        place = usable_device(wanted)
        if place.type not in ("cpu", "cuda"):
            raise UserError(f"doctor examines cpu, cuda or cuda:N, not {wanted}")
        return [torch.device("cuda", torch.cuda.current_device()) if str(place) == "cuda" else place]
    kinds = {}
    for n in reversed(range(torch.cuda.device_count())):
        found = gpu(f"cuda:{n}")
        kinds[found.name if found else ""] = n
    return [torch.device("cpu"), *(torch.device("cuda", n) for n in sorted(kinds.values()))]


def name_of(device: torch.device) -> str:
    """The device in words."""
    found = gpu(device)
    if found is None:
        return environment()["cpu"] or "CPU"
    major, minor = found.capability
    return f"{found.name}, compute capability {major}.{minor}, {found.memory / 2**30:.0f} GiB"


def machine() -> dict[str, Any]:
    """Versions and devices: what a report of a fault needs."""
    compiler = next((found for name in ("g++", "c++", "clang++") if (found := shutil.which(name))), None)
    return {**environment(), "compiler": compiler}


def choices(device: torch.device) -> list[dict[str, str]]:
    """Which backend `auto` takes on a device, for each operator and dtype, and why."""
    rows = []
    for op in (*OPS, "hgru2_step"):
        kinds = (*_REAL, torch.complex64) if op == "gated_scan" else _REAL
        for dtype in kinds:
            choice = _choice(op, device, dtype)
            kind = str(dtype).removeprefix("torch.")
            rows.append({"op": op, "dtype": kind, "backend": choice.backend, "why": choice.why})
    return rows


def chosen(op: str, device: torch.device, dtype: torch.dtype, complex_: bool = False) -> str:
    """The backend that `auto` takes for an operator."""
    return _choice(op, device, dtype.to_complex() if complex_ else dtype).backend


def _choice(op: str, device: torch.device, dtype: torch.dtype) -> backends.Choice:
    head = HEAD if op in ("hgru2", "hgru2_step", "gated_outer_scan") else 0
    state = backends.work_dtype(dtype) if op in backends.STEPS.values() else None
    return backends.choose(device, op=op, dtype=dtype, keys=head, values=head, state=state)
