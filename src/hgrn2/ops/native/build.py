"""Compile the C++ kernels for this machine at first use and load them with ctypes.

The sources are plain C++ with a C interface: no torch headers, so that the compiler needs about two seconds and the
result serves every torch version. The library is kept in the user's cache under a name made from the sources, the
flags, the compiler and the processor's features. `HGRN2_NATIVE=0` turns it off; without a compiler the plain PyTorch
backend serves and `hgrn2.ops.explain` says so.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from hgrn2.ops.cache import private, trusted_folder

SOURCES = ("scan.cpp", "elementwise.cpp", "rowwise.cpp", "decode.cpp")
HEADERS = ("vec.h",)
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_HERE = Path(__file__).parent


@functools.cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded kernels and a sentence about them; None and the reason where they cannot be had."""
    if os.environ.get("HGRN2_NATIVE", "1") == "0":
        return None, "turned off by HGRN2_NATIVE=0"
    compiler = next((found for name in ("g++", "c++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        return None, "no C++ compiler (g++, c++ or clang++) was found"
    if platform.system() not in ("Linux", "Darwin"):
        return None, f"C++ kernels are not built on {platform.system()}"
    folder = trusted_folder()
    unused = "" if folder else ", not kept: HGRN2_CACHE must name a folder to which only this user can write"
    try:
        return _load(compiler, folder), f"C++ kernels built by {Path(compiler).name} for this processor{unused}"
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{Path(compiler).name} could not build the C++ kernels: {_first_line(error)[:200]}"


def _first_line(error: OSError | subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (error.stderr.strip() or f"exit status {error.returncode} and no message").splitlines()[0]
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {error.timeout:.0f} seconds"
    return str(error).splitlines()[0]


def _architecture_flags() -> tuple[str, ...]:
    native = () if platform.system() == "Darwin" and platform.machine() == "arm64" else ("-march=native",)
    openmp = () if platform.system() == "Darwin" else ("-fopenmp",)
    return native + openmp


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join(flags).encode())
    for name in SOURCES + HEADERS:
        digest.update((_HERE / name).read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, text=True, timeout=30)
    digest.update(version.stdout.encode())
    features = Path("/proc/cpuinfo")
    if features.exists():  # -march=native means another binary on another processor
        lines = features.read_text(errors="replace").splitlines()
        digest.update("".join(sorted({x for x in lines if x.startswith(("flags", "Features"))})).encode())
    return digest.hexdigest()[:20]


def _load(compiler: str, folder: Path | None) -> ctypes.CDLL:
    flags = FLAGS + _architecture_flags()
    name = f"kernels-{_fingerprint(compiler, flags)}.so"
    if folder and (folder / name).exists() and private(folder / name):
        with contextlib.suppress(OSError):  # cut short by a crash: build it again
            return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as scratch:
        built = Path(scratch) / name
        command = [compiler, *flags, *(str(_HERE / source) for source in SOURCES), "-o", str(built)]
        subprocess.run(command, capture_output=True, check=True, text=True, timeout=300)
        kernels = ctypes.CDLL(str(built))  # before it gets its place: what cannot be loaded is never kept
        if folder:
            built.chmod(0o700)
            built.replace(folder / name)
    return kernels
