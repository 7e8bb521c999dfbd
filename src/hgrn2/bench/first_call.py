"""The first call of an operator: kernels built, nothing found that an earlier process has built."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from hgrn2.bench.calls import Implementation, ours
from hgrn2.bench.problems import Setting, draw
from hgrn2.errors import UserError
from hgrn2.testing.large import Expected

SECONDS = 600  # after which a first call is given up


@contextlib.contextmanager
def empty_kernel_cache() -> Iterator[None]:
    """Inside, Triton and this package find no kernel that an earlier process has built."""
    names = ("TRITON_CACHE_DIR", "HGRN2_CACHE", "CUDA_CACHE_PATH")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="hgrn2-first-call-") as folder:
        os.environ.update({name: os.path.join(folder, name.lower()) for name in names})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def in_this_process(implementation: Implementation) -> float:
    """Seconds of the first forward and backward here, with empty caches of kernels on disk."""
    with empty_kernel_cache():
        return _seconds(implementation)


def first_call(setting: Setting, backend: str) -> tuple[float, dict[str, Any]]:
    """Seconds of the first forward and backward in a new process, and what else is known about them.

    The process has imported PyTorch, started the GPU and drawn its inputs before the clock starts.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "hgrn2.bench.first_call", json.dumps({**asdict(setting), "backend": backend})]
    with empty_kernel_cache():
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"the first call of {setting.op} on {backend} failed in a new process: {said}")
    told = json.loads(done.stdout.splitlines()[-1])
    return told["seconds"], {
        "second_call_ms": round(1e3 * told["second"], 4),
        "process_seconds": round(time.perf_counter() - began, 2),
    }


def _seconds(implementation: Implementation) -> float:
    _wait()
    began = time.perf_counter()
    implementation.both()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _main(told: str) -> None:
    values = json.loads(told)
    backend = values.pop("backend")
    problem = draw(Setting(**values))

    implementation = ours(problem, backend, lambda: Expected({}, {}), lambda results: results)  # timed, not checked
    print(json.dumps({"seconds": _seconds(implementation), "second": _seconds(implementation)}))


if __name__ == "__main__":
    _main(sys.argv[1])
