"""The numbers of an inspection, as arrays: what figures, page and JSON show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hgrn2.inspect.states import along, differences
from hgrn2.inspect.trace import LayerTrace, Trace
from hgrn2.settings import refuse

POINTS = 60
"""Places of the text at which states are measured."""
REACHED = 48
"""Tokens whose outputs are taken apart for the distances."""


@dataclass(frozen=True, eq=False)
class LayerNumbers:
    """One layer, with H heads ([.., 1] for a vector state)."""

    layer: int
    kind: str
    sizes: tuple[int, int]
    """Heads, and channels of a head; a state of single channels is one head of all of them."""
    lower_bound: np.ndarray
    """γ [D]."""
    mean_log_forget: np.ndarray
    """[D], over the text."""
    memory: np.ndarray
    """Median over the channels of each head of -1 / mean ln f, tokens, [H]."""
    guaranteed: float
    """Median over channels of -1 / ln γ, tokens."""
    memory_along: np.ndarray
    """[T,H]."""
    norm: np.ndarray
    """Of the state, at `after`, [N,H]."""
    rank: np.ndarray | None
    """Effective rank, [N,H]; None for a vector state."""
    reach: np.ndarray
    """Share of what outputs are made of by distance in tokens, [T], mean over tokens of the later half."""
    shares: np.ndarray
    """Of each token up to the chosen one in the output there, [token+1]; they sum to 1."""

    @property
    def half_reach(self) -> int:
        """Of so many last tokens (the present one included) half of the outputs is made."""
        return int(np.searchsorted(np.cumsum(self.reach), 0.5)) + 1

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For programs; `names` of the tokens up to the chosen one."""
        tau = _time_scale(self.mean_log_forget)
        top = np.argsort(-np.abs(self.shares))[:5]
        return {
            "layer": self.layer, "kind": self.kind, "heads": self.sizes[0], "channels_of_a_head": self.sizes[1],
            "time_scale": dict(zip(("5%", "50%", "95%"), np.quantile(tau, (0.05, 0.5, 0.95)).tolist(), strict=True)),
            "guaranteed": self.guaranteed, "memory_by_head": self.memory.tolist(),
            "state_norm": float(self.norm[-1].mean()),
            "effective_rank": None if self.rank is None else float(self.rank[-1].mean()),
            "half_reach": self.half_reach,
            "largest_shares": [{"token": int(n), "text": names[n], "share": float(self.shares[n])} for n in top],
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class DifferenceNumbers:
    """Two texts' states in one layer, [H]."""

    layer: int
    distance: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True, eq=False)
class Inspection:
    """A text in a model, in numbers."""

    tokens: int
    token: int
    """Whose outputs are taken apart."""
    names: tuple[str, ...]
    """The text of every token, in visible characters."""
    after: np.ndarray
    """Numbers of tokens after which states were measured, [N]."""
    layers: tuple[LayerNumbers, ...]
    left_out: dict[int, str]
    difference: tuple[DifferenceNumbers, ...]
    nats: float | None
    """Mean -ln p of the text's tokens but the first; None for a single token."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "tokens": self.tokens, "token": self.token, "nats_per_token": self.nats,
            "layers": [layer.as_json(self.names) for layer in self.layers],
            "left_out": [{"layer": layer, "kind": kind} for layer, kind in self.left_out.items()],
            "difference": [
                {"layer": one.layer, "distance": one.distance.tolist(), "cosine": one.cosine.tolist()}
                for one in self.difference
            ],
        }  # fmt: skip


def measure(found: Trace, names: Sequence[str], token: int = -1, other: Trace | None = None) -> Inspection:
    """Everything that is shown of a text.

    Args:
        names: of the tokens, as shown.
        token: whose outputs are taken apart; negative ones count from the end.
        other: another text, whose final states are compared with this one's.

    Raises:
        UserError: a token that the text does not have.
    """
    count = found.tokens.shape[0]
    place = token + count if token < 0 else token
    refuse(not 0 <= place < count, f"there is no token {token} in a text of {count} tokens, from 0")
    after = sorted({round(x) for x in np.linspace(1, count, min(POINTS, count))})
    layers = tuple(_layer(layer, after, place) for layer in found.layers)
    compared = [] if other is None else differences(found.state, other.state)
    gated = {layer.layer for layer in layers}
    return Inspection(
        tokens=count, token=place, names=tuple(names), after=np.array(after), layers=layers,
        left_out=found.left_out,
        difference=tuple(
            DifferenceNumbers(one.layer, _array(one.distance), _array(one.cosine))
            for one in compared if one.layer in gated
        ),
        nats=float(-found.logprobs.mean()) if count > 1 else None,
    )  # fmt: skip


def _layer(layer: LayerTrace, after: list[int], token: int) -> LayerNumbers:
    log_f = layer.terms.log_forget
    heads, size = log_f.shape[1:]
    groups = (1, heads * size) if layer.vector else (heads, size)
    norm, rank = along(layer, after)
    return LayerNumbers(
        layer=layer.layer, kind=layer.kind, sizes=groups, lower_bound=_array(layer.lower_bound.flatten()),
        mean_log_forget=_array(log_f.mean(0).flatten()),
        memory=_array(layer.time_scales().reshape(groups).median(1).values),
        guaranteed=float(layer.guaranteed().median()), memory_along=_array(layer.memory_along()),
        norm=_array(norm), rank=None if rank is None else _array(rank), reach=_reach(layer),
        shares=_array(layer.shares(token)),
    )  # fmt: skip


def _reach(layer: LayerTrace) -> np.ndarray:
    """By distance, mean over tokens of the later half, which have that half at least before them."""
    total = torch.zeros(layer.tokens, dtype=torch.float64)
    places = sorted({round(x) for x in np.linspace(layer.tokens // 2, layer.tokens - 1, REACHED)})
    for place in places:
        total[: place + 1] += layer.reach(place).flip(0).double().cpu()
    return (total / len(places)).numpy()


def visible(text: str) -> str:
    """A token's text for a figure: spaces and line ends can be seen, what cannot be shown is a dot."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "·" for c in shown) or "·"


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def _time_scale(mean_log_forget: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -1 / mean_log_forget
