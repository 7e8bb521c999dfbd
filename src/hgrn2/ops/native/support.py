"""What the C++ kernels can serve, asked before a call; the first time this builds them."""

from pathlib import Path

import torch

from hgrn2.ops.backend import Backend, Batch, Call, constant_when_compiled, work_dtype
from hgrn2.ops.native.build import library


@constant_when_compiled
def _threads() -> int:
    return torch.get_num_threads()


class NativeBackend(Backend):
    """What all operators have in common in C++."""

    name = "native"

    def auto(self, call: Call) -> bool:
        """Nobody expects it on a GPU, and nobody is told that it is not there."""
        return call.device.type != "cuda"

    def supports(self, call: Call) -> tuple[bool, str]:
        """The CPU, with a compiler; a step's state only in the working dtype."""
        if call.device.type != "cpu":
            return False, f"native runs on the CPU, the tensors are on {call.device.type}"
        wanted = work_dtype(call.dtype)
        if call.state not in (None, wanted):
            return False, f"native steps keep the state in {wanted}, this one is {call.state}"
        kernels, why = library()
        return kernels is not None, why

    def slow(self, device: torch.device, keys: int, values: int, batch: Batch) -> str:
        """Where so many threads would be idle that plain PyTorch is sooner done.

        There is a thread for each sequence and head. On two cores with AVX2, forward and backward of one sequence with
        one head take 35 ms against 38 with states of 128 x 128 and 297 against 133 with 512 x 512; with 256 x 256 it is
        68 against 46 where lower bounds allow chunks of one product, and chunks are slower where they do not.
        """
        sequences, tokens, heads, bounded = batch
        threads = _threads()
        work = keys * values * threads**2 + bounded  # one more: what is level otherwise is not
        if work <= 512**2:  # not even for one state; asked first so that compiled code is not bound to a shape
            return ""
        idle = tokens >= 512 and work > (512 * sequences * heads) ** 2
        return f"{threads} threads compute few states of {keys} x {values} sooner in chunks" if idle else ""

    def place(self) -> dict[str, str]:
        """The library, which is named after its sources, the compiler and the processor."""
        kernels, _ = library()
        return {"kernels": Path(kernels._name).name if kernels else ""}
