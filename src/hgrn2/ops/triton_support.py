"""What the Triton kernels can serve, asked before a call without importing Triton."""

import importlib.util
import os

import torch

MOST_CHANNELS = 256
"""Of K and of V: a tile of the state must fit a program."""
_HEADS = ("hgru2", "hgru2_step", "gated_outer_scan")
_OPS = (*_HEADS, "gated_scan", "causal_conv")
_REAL = (torch.bfloat16, torch.float16, torch.float32)


def supports(op: str, device: torch.device, dtype: torch.dtype, keys: int, values: int) -> tuple[bool, str]:
    """Whether `op` in `dtype` with K = keys and V = values runs on Triton kernels here, and a sentence about it."""
    if op not in _OPS:
        return False, f"triton has no kernel for {op}"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (device.type == "cpu" and interpreted):
        return False, f"triton runs on GPUs (on the CPU only with TRITON_INTERPRET=1), the tensors are on {device.type}"
    wide = op == "gated_scan" and dtype == torch.complex64
    if dtype not in _REAL and not wide:
        name = str(dtype).removeprefix("torch.")
        return False, f"triton computes in float32 at most and takes bfloat16, float16 and float32, not {name}"
    if interpreted and op in _HEADS and dtype != torch.float32:
        return False, "Triton's interpreter computes products of bfloat16 wrongly; it serves float32 only"
    if op in _HEADS and max(keys, values) > MOST_CHANNELS:
        return False, f"triton takes heads of at most {MOST_CHANNELS} channels, not K = {keys}, V = {values}"
    place = "the interpreter" if interpreted else torch.cuda.get_device_name(device)
    return True, f"Triton kernels on {place}"
