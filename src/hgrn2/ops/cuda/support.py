"""What the CUDA kernels can serve, asked before a call without touching the GPU's memory."""

import functools

import torch

from hgrn2.gpu import GPU, gpu

HEADS = (64, 128)
SMALL = 16
"""Heads of at most so many channels have kernels of their own, which any GPU runs."""
SHORT, SHARE = 512, 0.18
"""Sequences of up to so many tokens are always scanned token by token; and see `too_few`."""
SHARED_MEMORY = 232192
"""Bytes a block must be allowed to use: Hopper and data-centre Blackwells are, Ampere and consumer cards are not."""


def supports(device: torch.device, dtype: torch.dtype, keys: int, values: int) -> tuple[bool, str]:
    """Whether hgru2 in `dtype` with K = keys and V = values runs on the CUDA kernels of this device, and a sentence."""
    if device.type != "cuda":
        return False, f"cuda runs on NVIDIA GPUs, the tensors are on {device.type}"
    if keys == values and 1 <= keys <= SMALL:
        if dtype not in (torch.bfloat16, torch.float32):
            name = str(dtype).removeprefix("torch.")
            return False, f"the CUDA kernels of small heads take bfloat16 and float32, not {name}"
        return _device_supports(gpu(device), 0)
    if dtype != torch.bfloat16:
        return False, f"the CUDA kernels take bfloat16, not {str(dtype).removeprefix('torch.')}"
    if keys != values or keys not in HEADS:
        return False, f"the CUDA kernels take heads with K = V of 1 to 16, 64 or 128, not K = {keys}, V = {values}"
    return _device_supports(gpu(device), SHARED_MEMORY)


def warps(sequences: int, heads: int, size: int) -> int:
    """Warps that scan side by side: each takes as many small heads of one sequence as fit into 32 lanes."""
    return sequences * -(-heads // (32 // size))


def too_few(sequences: int, tokens: int, heads: int, size: int, processors: int) -> bool:
    """Whether long sequences are so few that kernels which work on chunks of them are faster than a sequential scan.

    A sequential scan takes the same time for one warp as for as many as the GPU runs side by side; chunks take a time
    in proportion to the tokens. On an H200 they meet at about 0.18 n warps per multiprocessor
    (results/small_heads.jsonl).
    """
    return tokens > SHORT and warps(sequences, heads, size) < SHARE * size * processors


@functools.cache
def _device_supports(found: GPU | None, shared: int) -> tuple[bool, str]:
    assert found is not None  # asked of CUDA devices alone
    if torch.version.hip is not None:
        return False, "the CUDA kernels do not run on AMD GPUs"
    if found.shared_memory < shared:
        kib = shared // 1024
        return False, f"the CUDA kernels need {kib} KiB of shared memory a block, {found.name} has less"
    from hgrn2.errors import UserError
    from hgrn2.ops.cuda import nvrtc

    try:
        major, minor = nvrtc.version()
    except UserError as error:
        return False, str(error)
    return True, f"CUDA kernels for {found.name}, compiled by NVRTC {major}.{minor}"
