"""A backbone of ours on vLLM's linear maps: cut by heads for tensor parallelism, quantised where vLLM is asked to.

The modules are those of `hgrn2.layers`; what is exchanged in them are the projections, the norm over the full width,
and what is computed along the sequence. Which rows a process has of each parameter says `hgrn2.parallel.tensor`.
"""

# pyright: reportMissingImports=false

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.utils import set_weight_attrs

from hgrn2.models.backbone import Backbone
from hgrn2.parallel.tensor import Cut, SplitNorm, narrow_glu, narrow_mixer, split_norm
from hgrn2.vllm.operators import PooledOperators

EXACT = ("lower_bounds", "theta")
"""Parameters that stay float32: gates near one and phases are decided by their last digits."""


class RankNorm(SplitNorm):
    """The norm over the full width, by vLLM's own sum over its processes."""

    def _mean(self, x: Tensor) -> Tensor:
        return tensor_model_parallel_all_reduce(x.sum(-1, keepdim=True)) / (self.width * self.ranks)


def exchange(backbone: Backbone, vllm_config: VllmConfig, prefix: str) -> None:
    """Make a backbone on the meta device one of vLLM, in place, with empty weights that know how they are loaded."""
    ranks, layers = get_tensor_model_parallel_world_size(), vllm_config.compilation_config.static_forward_context
    cuts = {"lower_bounds": Cut(1, (backbone.config.width,), ranks)}
    blocks: list[Any] = list(backbone.blocks)
    for number, block in enumerate(blocks):
        name, mixer, glu = f"blocks.{number}", block.mixer, block.glu
        own = narrow_mixer(mixer, ranks)
        _exchange(mixer, own, vllm_config, f"{prefix}.{name}.mixer")
        if ranks > 1:
            split_norm(mixer, RankNorm, None, ranks)  # pyright: ignore[reportArgumentType]
        mixer.operators = layers[f"{prefix}.{name}.mixer"] = PooledOperators(f"{prefix}.{name}.mixer", mixer)
        cuts |= {f"{name}.mixer.{key}": cut for key, cut in own.items()}
        if glu is not None:
            _exchange(glu, narrow_glu(glu, ranks), vllm_config, f"{prefix}.{name}.glu")
    _make(backbone, cuts)


def _exchange(module: Any, cuts: dict[str, Cut], vllm_config: VllmConfig, prefix: str) -> None:
    """vLLM's maps in place of `in_proj` and `out_proj`."""
    first, last, quant = module.in_proj, module.out_proj, vllm_config.quant_config
    module.in_proj = MergedColumnParallelLinear(
        first.in_features, list(cuts["in_proj.weight"].parts), bias=first.bias is not None, quant_config=quant,
        prefix=f"{prefix}.in_proj", return_bias=False,
    )  # fmt: skip
    module.out_proj = RowParallelLinear(
        last.in_features, last.out_features, bias=last.bias is not None, quant_config=quant,
        prefix=f"{prefix}.out_proj", return_bias=False,
    )  # fmt: skip
    if len(cuts["out_proj.weight"].parts) > 1:
        weight = module.out_proj.weight
        weight.weight_loader = partial(_load_halves, cuts["out_proj.weight"], weight.weight_loader)


def _load_halves(cut: Cut, load: Any, parameter: nn.Parameter, loaded: Tensor) -> None:
    """Columns moved so that what vLLM cuts in one piece is a process's share of every part."""
    load(parameter, loaded.index_select(1, torch.cat([cut.rows(rank) for rank in range(cut.ranks)])))


def _make(backbone: Backbone, cuts: dict[str, Cut]) -> None:
    """Memory for every parameter that is still on the meta device, in the size of this process's share."""
    rank = get_tensor_model_parallel_rank()
    for name, whole in list(backbone.named_parameters()):
        if not whole.is_meta:
            continue
        place, _, last = name.rpartition(".")
        cut = cuts.get(name)
        shape = list(whole.shape)
        if cut is not None:
            shape[cut.dim] //= cut.ranks
        exact = torch.float32 if last in EXACT else None
        made = nn.Parameter(torch.empty(shape, dtype=exact), requires_grad=False)
        set_weight_attrs(made, {"weight_loader": partial(_load_cut, cut, rank)})
        setattr(backbone.get_submodule(place), last, made)


def _load_cut(cut: Cut | None, rank: int, parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data.copy_(loaded if cut is None else cut.take(loaded, rank))
