"""What the log says of a step beside its speed: the share of the device's matrix rate, and memory."""

import contextlib

import torch

from hgrn2.gpu import matrix_rate
from hgrn2.memory import process_peak


def peak_rate(device: torch.device, precision: str) -> float | None:
    """Floating-point operations per second of a large matrix product on this GPU in the precision of the run, measured
    (some tenths of a second); None on other devices, and where there is no memory for it."""
    if device.type != "cuda":
        return None
    with contextlib.suppress(torch.OutOfMemoryError):
        return matrix_rate(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return None


class Meter:
    """MFU and memory of a run on one device.

        MFU = operations per token · tokens/s / (measured matrix rate · devices)

    The operations are those of the model's definition (`hgrn2.models.count.flops_per_token`), whatever kernels or
    recomputation do besides.
    """

    def __init__(self, device: torch.device, precision: str, flops_per_token: int | None, devices: int = 1) -> None:
        self.device, self.flops_per_token, self.devices = device, flops_per_token, devices
        self.rate = peak_rate(device, precision) if flops_per_token else None
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def mfu(self, tokens_per_s: float) -> float | None:
        """From 0 to 1; None where the matrix rate was not measured or the operations are not counted."""
        if self.rate is None or self.flops_per_token is None:
            return None
        return self.flops_per_token * tokens_per_s / (self.rate * self.devices)

    def memory_bytes(self) -> int | None:
        """The most so far: of the GPU, what PyTorch's allocator gave out; else what of this process was resident."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else process_peak()
