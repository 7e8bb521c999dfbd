"""Tensor parallelism: the processes of a group share the heads of every mixer and the hidden width of every GLU.

A mixer of H heads becomes one of H/R heads whose input and output have the full width D:

    in_proj   each process has the rows of its heads, of every part of a fused projection: [i, o, f] is cut part by part
    out_proj  each has the columns of its heads; the outputs are summed over the group, once a mixer and once a GLU
    norm      over the full width: one sum of Σ y² over the group forward, one of its gradient Σ dy w y backward
    γ, θ, convolutions, biases of gates: those of its channels

    embedding, head and loss over V/R classes each, where R divides V (`vocabulary.py`)

What is not cut (norms in front, γ) every process has and computes alike; the loss is the same in each.
Which rows a parameter's part consists of stands in `Cut`, by which checkpoints put whole parameters together again.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hgrn2.layers.block import Block
from hgrn2.layers.glu import GLU
from hgrn2.layers.norm import Norm
from hgrn2.ops.backend import work_dtype
from hgrn2.parallel.collectives import Group, copied, reduced, summed
from hgrn2.parallel.config import refuse_tensor
from hgrn2.parallel.vocabulary import SharedEmbedding, SharedHead


@dataclass(frozen=True)
class Cut:
    """How a parameter is cut along one dimension: every one of its parts into R equal pieces, one for each process."""

    dim: int
    parts: tuple[int, ...]
    """Their sizes; all of them together are the dimension."""
    ranks: int

    def rows(self, rank: int) -> Tensor:
        """Places along the dimension of what one process has, in the order in which it has them."""
        found, begin = [], 0
        for size in self.parts:
            piece = size // self.ranks
            found.append(torch.arange(begin + rank * piece, begin + (rank + 1) * piece))
            begin += size
        return torch.cat(found)

    def take(self, whole: Tensor, rank: int) -> Tensor:
        """The piece of one process, in memory of its own."""
        return whole.index_select(self.dim, self.rows(rank).to(whole.device))

    def join(self, pieces: Tensor) -> Tensor:
        """[R,...] pieces of all processes -> the whole parameter."""
        places = torch.cat([self.rows(rank) for rank in range(self.ranks)]).to(pieces.device)
        together = torch.cat(pieces.unbind(0), self.dim)
        return torch.empty_like(together).index_copy_(self.dim, places, together)


class ColumnLinear(nn.Linear):
    """Some of the rows of a linear map; its input is the same in every process."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """[...,D] -> [...,those rows]."""
        return nn.functional.linear(copied(input, self.group), self.weight, self.bias)


class RowLinear(nn.Linear):
    """Some of the columns of a linear map; the sum over the processes is its output in each of them."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """[...,those columns] -> [...,D]."""
        y = reduced(nn.functional.linear(input, self.weight), self.group)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class SplitNorm(Norm):
    """A norm over the full width, of which every process has a part; the statistics alone are exchanged."""

    group: Group
    ranks: int

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """[...,D/R] -> [...,D/R] in x's dtype."""
        wide = x.to(work_dtype(x.dtype))
        if self.kind == "layer":
            wide = wide - self._mean(wide)
        y = wide * (self._mean(wide.square()) + self.eps).rsqrt()
        if self.kind == "layer":
            assert self.weight is not None
            assert self.bias is not None
            return (y * self.weight + self.bias).to(x.dtype)
        return y.to(x.dtype) if self.weight is None else y.to(x.dtype) * self.weight.to(x.dtype)

    def _mean(self, x: Tensor) -> Tensor:
        return summed(x.sum(-1, keepdim=True), self.group) / (self.width * self.ranks)


class SharedNorm(Norm):
    """A norm of single heads whose one weight all heads share: its gradient is the sum over the processes."""

    group: Group

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """[...,n] -> [...,n] in x's dtype."""
        assert self.weight is not None
        weight = copied(self.weight, self.group).to(x.dtype)
        return nn.functional.rms_norm(x, (self.width,), weight, self.eps)


def tensor_parallel(model: nn.Module, group: Group) -> dict[str, Cut]:
    """Leave of every block's mixer and GLU what is this process's, in place; the model is whole before.

    Returns:
        How each parameter that was cut was cut, by name.

    Raises:
        UserError: heads, widths or kinds of mixers that cannot be shared by the group.
    """
    ranks = dist.get_world_size(group)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Block)}
    for block in blocks.values():
        refuse_tensor(block.mixer.config, block.mixer.width, ranks)
    cuts: dict[str, Cut] = {}
    for name, block in blocks.items():
        mine = {f"mixer.{key}": cut for key, cut in _mixer(block.mixer, group, ranks).items()}
        if block.glu is not None:
            mine |= {f"glu.{key}": cut for key, cut in _glu(block.glu, group, ranks).items()}
        for key, cut in mine.items():
            _cut(block, key, cut, dist.get_rank(group))
        block.register_forward_pre_hook(_OwnBound(group, ranks), with_kwargs=True)
        cuts |= {f"{name}.{key}": cut for key, cut in mine.items()}
    return cuts | _vocabulary(model, group, ranks)


def _vocabulary(model: nn.Module, group: Group, ranks: int) -> dict[str, Cut]:
    """Cut embedding and head of a language model by classes; a vocabulary that does not divide stays whole."""
    found: dict[str, Any] = {name: getattr(model, name, None) for name in ("embedding", "head")}
    classes = getattr(getattr(model, "config", None), "vocab_size", 0)
    cuts: dict[str, Cut] = {}
    for (name, module), kind in zip(found.items(), (SharedEmbedding, SharedHead), strict=True):
        if type(module) not in (nn.Embedding, nn.Linear) or module.weight.shape[0] != classes or classes % ranks:
            continue
        shared, cut = _as(kind, module, group), Cut(0, (classes,), ranks)
        shared.begin = dist.get_rank(group) * (classes // ranks)
        shared.weight = nn.Parameter(cut.take(module.weight.detach(), dist.get_rank(group)))
        setattr(model, name, shared)
        cuts[f"{name}.weight"] = cut
    return cuts


def narrow_glu(glu: GLU, ranks: int) -> dict[str, Cut]:
    """How the parameters of a gated linear unit are to be cut."""
    hidden = glu.out_proj.in_features
    return _linear("in_proj", glu.in_proj, 0, (hidden, hidden), ranks) | _linear(
        "out_proj", glu.out_proj, 1, (hidden,), ranks
    )


def narrow_mixer(mixer: Any, ranks: int) -> dict[str, Cut]:
    """Give a mixer the numbers of its share of heads, in place; how its parameters, whole before, are to be cut.

    What the processes do together (sums behind `out_proj`, a norm over the full width) is the caller's.
    """
    width, parts = mixer.width, tuple(mixer.projections)
    inner = mixer.out_proj.in_features  # 2 D of HGRN1: real parts, then imaginary parts
    halves = (width,) * (inner // width)
    # HGRN1's input has a channel's two numbers side by side, its output gate all real parts first.
    rows = (parts[0], *halves, *parts[2:]) if mixer.config.kind == "hgru1" else parts
    cuts = _linear("in_proj", mixer.in_proj, 0, rows, ranks) | _linear("out_proj", mixer.out_proj, 1, halves, ranks)
    if getattr(mixer, "conv", None) is not None:
        cuts["conv"] = Cut(0, parts[:3], ranks)
    if getattr(mixer, "theta", None) is not None:
        cuts["theta"] = Cut(0, (width,), ranks)
    if hasattr(mixer, "gate_up"):
        cuts |= _linear("gate_up", mixer.gate_up, 0, (mixer.gate_up.out_features,), ranks)
    if isinstance(norm := getattr(mixer, "norm", None), Norm):
        cuts |= {f"norm.{name}": Cut(0, halves, ranks) for name, _ in norm.named_parameters()}
        norm.heads, norm.width = max(1, norm.heads // ranks), norm.width // ranks
    mixer.width, mixer.projections = width // ranks, tuple(size // ranks for size in parts)
    if hasattr(mixer, "heads"):
        mixer.heads //= ranks
    if "heads" in getattr(mixer, "options", {}):
        mixer.options = mixer.options | {"heads": mixer.heads}
    return cuts


def split_norm(mixer: Any, kind: type[SplitNorm], group: Group, ranks: int) -> None:
    """Let the norm of a narrowed mixer take its statistics over all processes, if it is one of the full width."""
    norm = getattr(mixer, "norm", None)
    if isinstance(norm, Norm) and norm.kind != "head_rms":
        mixer.norm = _as(kind, norm, group)
        mixer.norm.ranks = ranks


def _glu(glu: GLU, group: Group, ranks: int) -> dict[str, Cut]:
    cuts = narrow_glu(glu, ranks)
    glu.in_proj, glu.out_proj = _as(ColumnLinear, glu.in_proj, group), _as(RowLinear, glu.out_proj, group)
    return cuts


def _mixer(mixer: Any, group: Group, ranks: int) -> dict[str, Cut]:
    """Make a mixer one of its share of heads, but for its parameters; how those are to be cut."""
    cuts = narrow_mixer(mixer, ranks)
    mixer.in_proj = _as(ColumnLinear, mixer.in_proj, group)
    mixer.out_proj = _as(RowLinear, mixer.out_proj, group)
    if hasattr(mixer, "gate_up"):
        mixer.gate_up = _as(ColumnLinear, mixer.gate_up, group)
    split_norm(mixer, SplitNorm, group, ranks)
    for name in ("q_norm", "k_norm"):
        if getattr(mixer, name, None) is not None:
            setattr(mixer, name, _as(SharedNorm, getattr(mixer, name), group))
    return cuts


def _as(kind: type[nn.Module], module: nn.Module, group: Group) -> Any:
    """The same module, its parameters and settings, as one of another class."""
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    made.group = group  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _linear(name: str, linear: nn.Linear, dim: int, parts: tuple[int, ...], ranks: int) -> dict[str, Cut]:
    """Cuts of a linear map along its outputs (dim 0, the bias too) or its inputs (dim 1)."""
    cut = Cut(dim, parts, ranks)
    return {f"{name}.weight": cut} | ({f"{name}.bias": cut} if dim == 0 and linear.bias is not None else {})


def _cut(block: Block, name: str, cut: Cut, rank: int) -> None:
    place, _, last = name.rpartition(".")
    module = block.get_submodule(place)
    whole = getattr(module, last)
    setattr(module, last, nn.Parameter(cut.take(whole.detach(), rank), requires_grad=whole.requires_grad))
    if isinstance(module, nn.Linear) and last == "weight":
        module.out_features, module.in_features = module.weight.shape


class _OwnBound:
    """Gives a block the lower bounds of its own channels; their gradient is put together again."""

    def __init__(self, group: Group, ranks: int) -> None:
        self.group, self.ranks = group, ranks

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, lower_bound, *rest = args
        if lower_bound is None:
            return args, kwargs
        rank = dist.get_rank(self.group)
        return (x, copied(lower_bound, self.group).chunk(self.ranks)[rank], *rest), kwargs
