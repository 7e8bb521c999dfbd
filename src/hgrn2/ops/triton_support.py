"""What the Triton kernels can serve, asked before a call without importing Triton."""

import importlib.util
import os
from typing import ClassVar

import torch

from hgrn2.gpu import gpu
from hgrn2.ops.backend import Backend, Call

MOST_CHANNELS = 256
"""Of K and of V: a tile of the state must fit a program."""
_REAL = (torch.bfloat16, torch.float16, torch.float32)


class TritonBackend(Backend):
    """What all operators have in common on Triton: where it runs, and the dtypes."""

    name, compiles = "triton", True
    products: ClassVar[bool] = False
    """Whether the kernels multiply matrices of whole heads."""
    complex: ClassVar[bool] = False

    def auto(self, call: Call) -> bool:
        """On GPUs; the interpreter is asked for by name."""
        return call.device.type == "cuda"

    def supports(self, call: Call) -> tuple[bool, str]:
        """Not double precision, nor heads beyond MOST_CHANNELS."""
        if importlib.util.find_spec("triton") is None:
            return False, "triton is not installed"
        place, interpreted = call.device.type, os.environ.get("TRITON_INTERPRET") == "1"
        if place != "cuda" and not (place == "cpu" and interpreted):
            return False, f"triton runs on GPUs (on the CPU only with TRITON_INTERPRET=1), the tensors are on {place}"
        if call.dtype not in _REAL and not (self.complex and call.dtype == torch.complex64):
            name = str(call.dtype).removeprefix("torch.")
            return False, f"triton computes in float32 at most and takes bfloat16, float16 and float32, not {name}"
        if interpreted and self.products and call.dtype != torch.float32:
            return False, "Triton's interpreter computes products of bfloat16 wrongly; it serves float32 only"
        if max(call.keys, call.values) > MOST_CHANNELS:
            sizes = f"K = {call.keys}, V = {call.values}"
            return False, f"triton takes heads of at most {MOST_CHANNELS} channels, not {sizes}"
        found = gpu(call.device)
        return True, f"Triton kernels on {found.name if found else 'the interpreter'}"

    def place(self) -> dict[str, str]:
        """Triton's version."""
        from hgrn2.ops.known_bad import version

        return {"triton": version("triton")}
