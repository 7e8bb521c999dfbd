"""States as matrices: size, effective rank, and how far two of them are apart."""

from typing import NamedTuple

import torch
from torch import Tensor

from hgrn2.inspect.trace import LayerTrace
from hgrn2.layers.state import LayerState, ModelState
from hgrn2.settings import refuse


class Difference(NamedTuple):
    """Two states of one layer, head by head, [H]; a vector state is one head."""

    layer: int
    distance: Tensor
    """‖A - B‖ / sqrt(‖A‖² + ‖B‖²): 0 for equal states, 1 for orthogonal ones, at most √2. 0 for two empty states."""
    cosine: Tensor
    """Re⟨A, B⟩ / (‖A‖ ‖B‖); 0 where a state is empty."""


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the singular values σ / Σσ of matrices [...,K,V]: between 1 and min(K, V), 0 for a zero
    matrix (Roy and Vetterli, 2007)."""
    values = torch.linalg.svdvals(matrices)
    total = values.sum(-1, keepdim=True)
    share = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    rank = torch.special.entr(share).sum(-1).exp()
    return torch.where(total.squeeze(-1) > 0, rank, torch.zeros_like(rank))


def along(layer: LayerTrace, after: list[int]) -> tuple[Tensor, Tensor | None]:
    """Norm and effective rank of the state after so many tokens, [N,H] each; of a vector state the norm of all of it,
    [N,1], and no rank."""
    states = torch.stack(list(layer.states(after)))
    if layer.vector:
        return states.flatten(1).abs().square().sum(1, keepdim=True).sqrt(), None
    return states.flatten(2).abs().square().sum(2).sqrt(), effective_rank(states)


def differences(a: ModelState, b: ModelState) -> list[Difference]:
    """How far two states of one model are apart, by layer and head; layers whose states grow (attention) are left out.

    Raises:
        UserError: states of different models, or of other than one sequence.
    """
    refuse(len(a.layers) != len(b.layers), "the two states are of different models")
    refuse(a.batch != 1 or b.batch != 1, "two states of one sequence each are compared")
    found = []
    for n, (one, two) in enumerate(zip(a.layers, b.layers, strict=True)):
        if not isinstance(one, LayerState) or not isinstance(two, LayerState):
            continue
        refuse(one.recurrent.shape != two.recurrent.shape, "the two states are of different models")
        heads = one.recurrent.shape[1] if one.recurrent.dim() == 4 else 1
        x, y = one.recurrent.reshape(heads, -1), two.recurrent.reshape(heads, -1)
        sizes, others = x.abs().square().sum(1), y.abs().square().sum(1)
        inner = (x * y.conj()).sum(1)
        inner = inner.real if inner.is_complex() else inner
        tiny = torch.finfo(sizes.dtype).tiny
        distance = (x - y).abs().square().sum(1).sqrt() / (sizes + others).clamp_min(tiny).sqrt()
        found.append(Difference(n, distance, inner / (sizes * others).clamp_min(tiny).sqrt()))
    return found
