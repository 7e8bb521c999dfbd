"""Compile the C++ kernels for this machine at first use and load them with ctypes.

The sources are plain C++ with a C interface: no torch headers, so that the compiler needs about two seconds and the
result serves every torch version. The library is kept in the user's cache under a name made from the sources, the
flags, the compiler and the processor's features. `HGRN2_NATIVE=0` turns it off; without a compiler the plain PyTorch
backend serves and `hgrn2.ops.explain` says so.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

SOURCES = ("scan.cpp", "elementwise.cpp")
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
    try:
        return ctypes.CDLL(str(_built(compiler))), f"C++ kernels built by {Path(compiler).name} for this processor"
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines() or [type(error).__name__]
        return None, f"{Path(compiler).name} could not build the C++ kernels: {lines[0][:200]}"


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


def cache_folder() -> Path:
    """Where built kernels are kept: $HGRN2_CACHE, else the user's cache folder."""
    if named := os.environ.get("HGRN2_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hgrn2"


def _private_folder() -> Path:
    """The cache folder, if only this user can write to it: what it holds is executed."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = folder.stat()
        if (
            info.st_uid == os.getuid()
            and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            and os.access(folder, os.W_OK)
        ):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="hgrn2-"))


def _built(compiler: str) -> Path:
    flags = FLAGS + _architecture_flags()
    target = _private_folder() / f"kernels-{_fingerprint(compiler, flags)}.so"
    if not target.exists():
        handle, name = tempfile.mkstemp(dir=target.parent, suffix=".so.tmp")
        os.close(handle)
        sources = [str(_HERE / source) for source in SOURCES]
        try:
            subprocess.run(
                [compiler, *flags, *sources, "-o", name], capture_output=True, check=True, text=True, timeout=300
            )
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
    return target
