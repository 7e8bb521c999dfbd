"""Linear maps of the blocks in float8 while a model is trained, by torchao's tensorwise scaling.

Inputs and weights are rounded to float8 e4m3, gradients of outputs to e5m2, each with one scale for a whole tensor, and
multiplied on the GPU's float8 units; sums, weights and optimiser states keep their precision. The head, embeddings,
norms, lower bounds and convolutions stay as they are, and so do maps whose sides are not divisible by 16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hgrn2.errors import UserError
from hgrn2.gpu import gpu
from hgrn2.layers.block import Block
from hgrn2.settings import refuse
from hgrn2.train.config import Float8Kind

SIDES = 16
"""What both sides of a matrix must be divisible by."""


def check_float8(kind: Float8Kind, device: torch.device) -> None:
    """Refuse float8 where the device or the package for it is missing, before anything of a run is made."""
    if kind == "none":
        return
    _torchao()
    if kind == "tensorwise":
        found = gpu(device)
        able = found is not None and (found.capability >= (8, 9) or torch.version.hip is not None)
        what = "a processor" if found is None else f"{found.name}"
        refuse(not able, f"train.float8=tensorwise needs a GPU of compute capability 8.9 or more, not {what}; "
                         "train.float8=emulated rounds alike anywhere, slowly")  # fmt: skip


def _torchao() -> Any:
    try:
        import torchao.float8 as found
    except ImportError:
        raise UserError("train.float8 needs torchao: pip install 'hgrn2[float8]'") from None
    return found


class Float8Maps:
    """The maps of a model that are computed in float8, and what they were."""

    def __init__(self, model: nn.Module, kind: Float8Kind) -> None:
        """Raises UserError where no map of the model can be."""
        torchao = _torchao()
        before = {
            f"{block_name}.{name}": module
            for block_name, block in model.named_modules()
            if isinstance(block, Block)
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear) and fits(module)
        }
        refuse(not before, f"train.float8: no linear map in the blocks of this model has sides divisible by {SIDES}")
        config = torchao.Float8LinearConfig(emulate=kind == "emulated")  # its default is the tensorwise recipe
        chosen = {id(module) for module in before.values()}
        torchao.convert_to_float8_training(
            model, config=config, module_filter_fn=lambda module, name: id(module) in chosen
        )
        self._model, self._before = model, before
        self._after = {name: model.get_submodule(name) for name in before}

    def __len__(self) -> int:
        return len(self._before)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """The model as it will be loaded again: with its own linear maps, of the same weights."""
        self._put(self._before)
        try:
            yield
        finally:
            self._put(self._after)

    def _put(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            above, _, last = name.rpartition(".")
            setattr(self._model.get_submodule(above), last, module)


def fits(module: nn.Linear) -> bool:
    """Whether float8 units take its products."""
    return module.in_features % SIDES == 0 and module.out_features % SIDES == 0
