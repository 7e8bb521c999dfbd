"""Run the CUDA kernels on a CPU: the very sources, compiled by g++ against a small emulation of a block of threads.

Slow (one fiber per thread, a switch at every barrier and every instruction of a whole warp), but it computes what the
GPU would up to rounding, fills shared memory with NaN first, and aborts on misaligned or foreign addresses there.
Asynchronous copies arrive only when they are waited for (`launch`), which shows a wait that is missing, or at once
(`launch_early`), which shows a copy into memory that other threads still read. A GPU does anything between.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from hgrn2.ops.cuda.launch import SOURCES

_HERE = Path(__file__).parent
_SOURCES = _HERE.parent.parent / "ops" / "cuda"


def compiler() -> str | None:
    """The C++ compiler, None where there is none."""
    return shutil.which("g++")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hgrn2-emulator-")


@functools.cache
def _library(name: str, head: int) -> ctypes.CDLL:
    built = Path(_folder().name) / f"{name}-{head}.so"
    command = [
        str(compiler()), "-O2", "-std=c++17", "-shared", "-fPIC", "-DHGRN2_EMULATED", f"-DHEAD={head}",
        f'-DKERNEL_FILE="{SOURCES[name]}"', f"-DKERNEL_NAME={name}", f"-I{_HERE}", f"-I{_SOURCES}",
        str(_HERE / "host.cpp"), "-o", str(built),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(built))


def launch(
    name: str, head: int, problem: ctypes.Structure, grid: tuple[int, int], threads: int, shared: int,
    device: torch.device, early: bool = False,
) -> None:  # fmt: skip
    """What `ops.cuda.launch.launch` does, on the CPU and at once."""
    _library(name, head).run(ctypes.byref(problem), *grid, threads, shared, int(early))


launch_early = functools.partial(launch, early=True)
