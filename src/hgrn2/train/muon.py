"""Muon with matrix products in a dtype that the device multiplies natively, and matrices of one shape in one batch.

The update rule, its constants and the names of its states are those of `torch.optim.Muon`, whose checkpoints load here.
That one multiplies in bfloat16 everywhere, which a processor without bfloat16 units emulates (3.1 s per step of the
demo rather than 0.05), and one matrix after the other.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from hgrn2 import cpu
from hgrn2.parallel.pieces import joined, local, piece_of
from hgrn2.train.light import Light

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, which drives singular values to between 0.7 and 1.2 soon rather than to 1 exactly."""
ITERATIONS = 5
EPS = 1e-7


class Muon(Light):
    """Orthogonalised momentum for matrices [M,N].

        B <- μ B + (1 - μ) G        U = (1 - μ) G + μ B        W <- (1 - η λ) W - 0.2 η sqrt(max(M, N)) NS(U)

    NS is five Newton-Schulz iterations. The factor gives an update the root mean square that AdamW's has
    (`adjust_lr_fn="match_rms_adamw"` in torch). State of a parameter: `momentum_buffer`, B; of a sharded
    one it is a piece, and every process orthogonalises the whole matrix.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    key = (parameter.shape, parameter.dtype, parameter.device)
                    alike.setdefault(key, []).append(parameter)
            for together in alike.values():
                self._update(together, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        """Of parameters of one shape."""
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(local(gradient))
            mean = state["momentum_buffer"].lerp_(local(gradient), 1 - momentum)
            updates.append(joined(local(gradient).lerp(mean, momentum), parameter))  # singular values are of the whole
        directions = orthogonalised(torch.stack(updates), cpu.product_dtype(parameters[0].device))
        step = 0.2 * lr * math.sqrt(max(parameters[0].shape))
        for parameter, direction in zip(parameters, directions, strict=True):
            local(parameter).mul_(1 - lr * weight_decay).add_(piece_of(direction, parameter), alpha=-step)


def orthogonalised(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Newton-Schulz of each matrix [K,M,N] in `dtype`: about U V^T of its singular value decomposition U S V^T.

    The matrices are not changed; the result has `dtype`.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
