"""What is slow on this machine's processor, and why: a sentence each, with numbers measured in well under a second."""

import os
import time
from collections.abc import Callable

import torch

from hgrn2 import cpu
from hgrn2.environment import environment
from hgrn2.ops.hgru2 import hgru2
from hgrn2.ops.native import build

SIDE = 512
"""Of the square matrices that are multiplied."""
SCAN = (4, 256, 192, 6)
"""Sequences, tokens, channels and heads of the scan that is timed: half a step of the demo, one layer."""


def slow_parts(devices: list[torch.device]) -> list[str]:
    """A sentence for each thing that makes this processor slower than others, or than it could be; none where it is not
    among the devices asked for."""
    if all(device.type != "cpu" for device in devices):
        return []
    return [sentence for sentence in (_threads(), _compiler(), _vectors(), _bfloat16()) if sentence]


def _threads() -> str:
    used, cores = torch.get_num_threads(), int(environment()["cores"])
    if used >= cores:
        return ""
    why = " (OMP_NUM_THREADS is set)" if os.environ.get("OMP_NUM_THREADS") else ""
    return (
        f"PyTorch computes with {used} of {cores} cores{why}, "
        f"at {_rate(torch.float32):.0f} GFLOP/s in float32 matrix products."
    )


def _compiler() -> str:
    library, why = build.library()
    if library is not None:
        return ""
    return f"The scan runs in plain PyTorch, {_scan_ms('chunked'):.0f} ms for {_case()}: {why}."


def _vectors() -> str:
    """Of kernels whose blocks of states need more registers than AVX2 has."""
    if cpu.has("avx512_f") or not cpu.has("avx2") or build.library()[0] is None:
        return ""
    return (
        f"There is no AVX-512: the scan in C++ works with half as wide vectors and half as many registers, "
        f"{_scan_ms('native'):.1f} ms for {_case()}."
    )


def _bfloat16() -> str:
    """Emulated products: more than twice as slow as those of float32, which need twice the bytes."""
    if cpu.has("amx_bf16"):
        return ""
    low, full = _rate(torch.bfloat16), _rate(torch.float32)
    if low > 0.5 * full:
        return ""
    return (
        f"bfloat16 matrix products are emulated: {low:.1f} GFLOP/s, {full:.0f} in float32. Train with "
        "train.precision=float32 here; Muon does its products in float32 by itself."
    )


def _rate(dtype: torch.dtype) -> float:
    """10^9 operations per second of a matrix product, the best of three."""
    x = torch.randn(SIDE // 2 if dtype == torch.bfloat16 else SIDE, SIDE).to(dtype)
    return 2 * x.shape[0] ** 2 * SIDE / _seconds(lambda: x @ x.T) / 1e9


def _case() -> str:
    batch, tokens, channels, heads = SCAN
    return f"{batch} x {tokens} tokens of {channels} channels in {heads} heads, forward and backward"


def _scan_ms(name: str) -> float:
    batch, tokens, channels, heads = SCAN
    x = torch.randn(batch, tokens, channels, requires_grad=True)

    def both() -> None:
        output, _ = hgru2(x, x, x, heads=heads, backend=name)  # pyright: ignore[reportArgumentType]
        torch.autograd.grad(output.sum(), x)

    return 1e3 * _seconds(both)


def _seconds(call: Callable[[], object]) -> float:
    """The best of three after a first one, or of as many as a seventh of a second holds: others compute too."""
    call()
    best, end, runs = float("inf"), time.perf_counter() + 0.15, 0
    while runs < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best, runs = min(best, time.perf_counter() - begin), runs + 1
    return best
