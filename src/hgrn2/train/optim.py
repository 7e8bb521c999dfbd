"""Which optimiser updates which parameter."""

from typing import Any

import torch
from torch import nn

from hgrn2.layers.block import Block
from hgrn2.parallel.pieces import local, sharded_as
from hgrn2.settings import refuse
from hgrn2.train.config import OptimConfig
from hgrn2.train.light import AdamW
from hgrn2.train.muon import Muon

STEP_BYTES = 4
"""Of AdamW's count of steps, one for each parameter."""


class Optimizers:
    """One or two optimisers that step together; their states are saved and loaded by parameter name."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.config = config
        self.keep_gradients = False
        """Zero gradients in place rather than drop them."""
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        in_blocks = _block_matrices(model)
        matrices = {n for n in in_blocks if n in self.named} if config.optimizer == "muon" else set()
        none = config.optimizer == "muon" and not matrices
        refuse(none, "optim.optimizer=muon is for matrices in blocks of ours, and this model trains none: use adamw")
        decayed = [p for n, p in self.named.items() if n not in matrices and _decays(n, p)]
        plain = [p for n, p in self.named.items() if n not in matrices and not _decays(n, p)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        # One kernel over all parameters; on a CPU the plain loop, whose results earlier runs had, is no slower.
        fused = all(p.device.type == "cuda" for p in self.named.values())
        adamw = AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps,
            fused=fused or None,
        )  # fmt: skip
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [(adamw, config.lr)]
        if matrices:
            muon = Muon(
                [self.named[n] for n in sorted(matrices)],
                lr=config.matrix_lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
            self.parts.append((muon, config.matrix_lr))

    def set_share(self, share: float) -> None:
        """Set every learning rate to this share of its peak."""
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * share

    def step(self) -> None:
        """Update all parameters and drop their gradients, or zero them where they are kept."""
        for optimizer, _ in self.parts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=not self.keep_gradients)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The optimisers' states under `parameter/entry`; of a sharded model this process's pieces."""
        found: dict[str, torch.Tensor] = {}
        for optimizer, _ in self.parts:
            for name, parameter in self.named.items():
                for entry, value in optimizer.state.get(parameter, {}).items():
                    found[f"{name}/{entry}"] = local(value) if isinstance(value, torch.Tensor) else torch.tensor(value)
        return found

    def planned_bytes(self) -> int:
        """Of the states that steps will make: AdamW has two of every parameter and a number, Muon one."""
        found = 0
        for optimizer, _ in self.parts:
            for parameter in (one for group in optimizer.param_groups for one in group["params"]):
                size = local(parameter.detach()).nbytes
                found += size if isinstance(optimizer, Muon) else 2 * size + STEP_BYTES
        return found

    def load_tensors(self, found: dict[str, torch.Tensor]) -> None:
        """Take back what `tensors` gave, bit for bit."""
        for optimizer, _ in self.parts:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self.named.items():
                if id(parameter) in mine:
                    entries: dict[str, Any] = {
                        key.rpartition("/")[2]: value for key, value in found.items() if key.rpartition("/")[0] == name
                    }
                    if entries:
                        optimizer.state[parameter] = {
                            entry: value if entry == "step" and not optimizer.defaults.get("fused")
                            else _placed(optimizer, parameter, value)
                            for entry, value in entries.items()
                        }  # fmt: skip


def _placed(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A piece of a state as the optimiser has it: Muon's are pieces, those of PyTorch's own are sharded tensors."""
    value = value.to(parameter.device)
    return value if isinstance(optimizer, Muon) else sharded_as(value, parameter)


def _block_matrices(model: nn.Module) -> set[str]:
    """Weights of linear maps inside blocks: what Muon is for. Embeddings, heads, lower bounds and convolutions are
    not."""
    return {
        f"{block_name}.{name}.weight"
        for block_name, block in model.named_modules()
        if isinstance(block, Block)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }


def _decays(name: str, parameter: torch.Tensor) -> bool:
    return parameter.dim() in (2, 4) and not name.endswith(("lower_bounds", ".conv", ".local", ".log_decay", ".scales"))
