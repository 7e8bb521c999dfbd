"""What the CUDA kernels can serve, asked before a call without touching the GPU."""

import torch


def supports(op: str, device: torch.device, dtype: torch.dtype, keys: int, values: int) -> tuple[bool, str]:
    """Whether `op` in `dtype` with K = keys and V = values runs on the CUDA kernels of this device, and a sentence."""
    if device.type != "cuda":
        return False, f"cuda runs on NVIDIA GPUs, the tensors are on {device.type}"
    return False, "not built"
