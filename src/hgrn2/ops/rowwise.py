"""What operators that look at one row at a time have in common: when their C++ serves, and how sums are split."""

import torch
from torch import Tensor, nn

from hgrn2.ops.backend import Call, has_tangents
from hgrn2.ops.native.support import NativeBackend

SERVED = (torch.float32, torch.float64)
ROWS_OF_A_SUM = 256


class RowBackend(NativeBackend):
    """The C++ of such an operator; narrower dtypes, which it would have to convert, are PyTorch's."""

    def auto(self, call: Call) -> bool:
        return call.device.type == "cpu" and call.dtype in SERVED

    def supports(self, call: Call) -> tuple[bool, str]:
        if call.device.type == "cpu" and call.dtype not in SERVED:
            return False, f"its rows are float32 or float64, these are {str(call.dtype).removeprefix('torch.')}"
        return super().supports(call)


def sums_of(rows: int) -> int:
    """Partial sums over so many rows: their number must not depend on threads, or results would."""
    return max(1, min(16, rows // ROWS_OF_A_SUM))


def seen_by_others(*tensors: Tensor | None) -> bool:
    """Whether something stands between the caller and memory that wants to see PyTorch's own operations.

    A compiler fuses them with what is around them, an exporter has names for them, and subclasses of tensors (sharded,
    fake, adapted), `vmap` and forward-mode derivatives know what to do with them.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    return any(x is not None and not _ordinary(x) for x in tensors) or has_tangents(*tensors)


def _ordinary(x: Tensor) -> bool:
    kind = type(x)
    if (kind is not Tensor and kind is not nn.Parameter) or x.device.type != "cpu":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]
