"""Load compiled kernels into the GPU's driver and start them on PyTorch's current stream.

Machine code is kept in the user's cache folder under a name made from sources, architecture and compiler version, so
only the first call on a machine compiles (seconds); later processes load it in milliseconds.
"""

import ctypes
import functools
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from hgrn2.gpu import architecture
from hgrn2.ops.cache import trusted_folder
from hgrn2.ops.cuda import nvrtc

_HERE = Path(__file__).parent
KERNELS = {"forward": "forward.cu", "states": "states.cu", "join": "join.cu", "backward": "backward.cu"}
"""Of heads of 64 and 128, which need one another."""
SMALL_KERNELS = {"small_forward": "small_forward.cu", "small_backward": "small_backward.cu"}
"""Of heads of 16 and less."""
SOURCES = KERNELS | SMALL_KERNELS
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


class Problem(ctypes.Structure):
    """What problem.h declares under the same names; every pointer is to device memory, 0 where there is none."""

    _fields_ = (
        [(name, _POINTER) for name in ("q", "f", "i", "grad_o")]
        + [(name, ctypes.c_int64) for name in ("q_row", "f_row", "i_row", "o_row")]
        + [(name, _POINTER) for name in ("lower_bound", "state", "grad_state", "o", "dq", "df", "di")]
        + [(name, _POINTER) for name in ("final_state", "d_state", "d_lower_bound", "segments", "decays", "arriving")]
        + [(name, _POINTER) for name in ("chunks", "items")]
        + [(name, _INT) for name in ("count", "heads", "reverse", "input_activation", "output_activation", "mode")]
        + [("scale", ctypes.c_float)]
    )


@functools.cache
def driver() -> ctypes.CDLL:
    """The CUDA driver's library."""
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA: {what} failed: {text.value.decode() if text.value else status}")


@functools.cache
def _prebuilt(head: int, device: int, small: bool) -> None:
    """Compile all kernels side by side when the first of them is wanted; NVRTC works outside Python's lock."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: machine_code(name, head, device), SMALL_KERNELS if small else KERNELS))


@functools.cache
def _function(name: str, head: int, device: int, shared: int) -> ctypes.c_void_p:
    """A kernel loaded on one device, allowed to use `shared` bytes of shared memory."""
    _prebuilt(head, device, name in SMALL_KERNELS)
    code, module, function = machine_code(name, head, device), _POINTER(), _POINTER()
    _check(driver().cuModuleLoadData(ctypes.byref(module), code), f"loading {name}")
    _check(driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()), f"finding {name}")
    if shared:
        _check(driver().cuFuncSetAttribute(function, _DYNAMIC_SHARED, shared), f"{shared} bytes of shared memory")
    return function


def launch(
    name: str, head: int, problem: ctypes.Structure, grid: tuple[int, int], threads: int, shared: int,
    device: torch.device,
) -> None:  # fmt: skip
    """Start one kernel on the current stream of `device`; returns at once."""
    if 0 in grid:
        return
    argument = (_POINTER * 1)(ctypes.addressof(problem))
    with torch.cuda.device(device):
        stream = _POINTER(torch.cuda.current_stream(device).cuda_stream)
        function = _function(name, head, torch.cuda.current_device(), shared)
        status = driver().cuLaunchKernel(function, *grid, 1, threads, 1, 1, shared, stream, argument, None)
    _check(status, f"starting {name}")


def machine_code(name: str, head: int, device: int) -> bytes:
    """The kernel for this device's architecture, from the cache folder or compiled now."""
    arch = architecture(f"cuda:{device}").replace("sm", "sm_")
    source, headers = nvrtc.sources(_HERE, head, SOURCES[name])
    digest = hashlib.sha256("\0".join([source, arch, str(nvrtc.version()), *headers.values()]).encode())
    folder = trusted_folder()
    kept = folder / f"{name}-{digest.hexdigest()[:20]}.cubin" if folder else None
    if kept and kept.exists():
        return kept.read_bytes()
    code, _ = nvrtc.compile_cubin(source, SOURCES[name], headers, arch)
    if kept:
        _keep(kept, code)
    return code


def _keep(path: Path, code: bytes) -> None:
    handle, scratch = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(code)
    Path(scratch).replace(path)
