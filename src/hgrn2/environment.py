"""On what a number was measured: versions, processor, accelerator, commit. No names of people, hosts or folders."""

import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hgrn2
from hgrn2.gpu import gpu

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def environment() -> dict[str, Any]:
    """The machine and software of this process as plain JSON values; what cannot be found out is None.

    torch is asked (threads, GPU) only if the process has loaded it already; nothing heavy is imported here.
    """
    return {
        "hgrn2": hgrn2.__version__,
        **_commit(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "triton": _version("triton"),
        "fla": _version("fla") or _version("fla-core"),
        "platform": " ".join(part for part in (platform.system(), platform.machine(), *platform.libc_ver()) if part),
        "cpu": _cpu_model(),
        "vectors": _vectors(),
        "cores": _cores(),
        "threads": _threads(),
        **_gpu(),
        "date_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def code_identity() -> str:
    """Hex digest of this package's Python files, and the versions of torch and Python that run them."""
    root = Path(hgrn2.__file__).parent
    found = hashlib.sha256(f"{_version('torch')} {platform.python_version()}".encode())
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _version(package: str) -> str | None:
    """Of the loaded module if there is one (it is what runs), else of the installed package."""
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    except OSError:
        pass  # not Linux
    return platform.processor() or None


def _vectors() -> str | None:
    """The widest vectors of an x86 processor, whose name may say little ("AMD EPYC"); None where it is not known."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    return next(
        (name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX")) if flag in flags), None
    )


def _cores() -> int:
    """Cores this process may use: its affinity, cut to the container's share where one is set."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no such control group
    return cores


def _threads() -> int | None:
    """Threads that torch computes with, or what OMP_NUM_THREADS asks for while torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() else None


def _gpu() -> dict[str, Any]:
    """Name and number of GPUs, the CUDA version torch was built for, and the version of the driver."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {"gpu": None, "gpus": 0, "cuda": None, "driver": None}
    found = gpu("cuda")
    name = None if found is None else found.name
    return {"gpu": name, "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda, "driver": _driver()}


@functools.cache
def _driver() -> str | None:
    """Of NVIDIA's kernel module, as its own tool says."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.split() or [None])[0] if done.returncode == 0 else None


def _commit() -> dict[str, Any]:
    """The commit this package's sources belong to, and whether they differ from it.

    A package installed inside someone's project lies in that project's tree but is not tracked by it: no commit then.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain", "--", ".")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    """Output of a git command run on the package's folder; None where it fails or git is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(hgrn2.__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            # Looking must not take the lock that a commit in another terminal needs.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
