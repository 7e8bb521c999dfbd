"""What a state holds and how far two of them are apart, as JSON values."""

from typing import Any

import torch
from torch import Tensor

from hgrn2.generate.snapshots import Snapshot
from hgrn2.inspect.states import differences, effective_rank
from hgrn2.layers.key_values import KeyValues
from hgrn2.layers.state import LayerState
from hgrn2.models.language import LanguageModel
from hgrn2.serve.gates import LONGEST


def remembered(model: LanguageModel, snapshot: Snapshot) -> dict[str, Any]:
    """Norm and rank of every head, and the lower bounds of the gates, layer by layer."""
    layers = []
    bounds = model.backbone.layer_lower_bounds()
    for n, (mixer, state, lower_bound) in enumerate(
        zip(model.backbone.mixers, snapshot.state.layers, bounds, strict=True)
    ):
        held = _held(state)
        layers.append({
            "layer": n, "kind": mixer.kind, "shape": list(held.shape), "norm": _number(_norm(held)),
            **_lower_bounds(lower_bound), "heads": None if held.dim() != 3 else _heads(held),
        })  # fmt: skip
    return {"tokens": snapshot.tokens, "layers": layers}


def compared(model: LanguageModel, a: Snapshot, b: Snapshot) -> dict[str, Any]:
    """Distance and angle of two states, by layer and head; see `hgrn2.inspect.states.Difference`."""
    found = differences(a.state.to("cpu"), b.state.to("cpu"))
    layers = [
        {
            "layer": one.layer, "kind": model.backbone.mixers[one.layer].kind,
            "heads": [
                {"distance": _number(distance), "cosine": _number(cosine)}
                for distance, cosine in zip(one.distance, one.cosine, strict=True)
            ],
        }
        for one in found
    ]  # fmt: skip
    return {"tokens": [a.tokens, b.tokens], "layers": layers}


def _held(state: LayerState | KeyValues) -> Tensor:
    """A state of one sequence without the batch: [H,K,V], [D], keys and values [S,2,H,n]."""
    held = state.trimmed().seen if isinstance(state, KeyValues) else state.recurrent
    return held[0].detach().to("cpu")


def _heads(matrices: Tensor) -> list[dict[str, float]]:
    """Of matrices [H,K,V]."""
    largest = torch.linalg.matrix_norm(matrices, 2)
    return [
        {"norm": _number(_norm(matrix)), "largest": _number(top), "effective_rank": _number(rank)}
        for matrix, top, rank in zip(matrices, largest, effective_rank(matrices), strict=True)
    ]


def _lower_bounds(lower_bound: Tensor | None) -> dict[str, Any]:
    if lower_bound is None:
        none = {"low": 0.0, "mean": 0.0, "high": 0.0}
        return {"lower_bound": none, "least_memory": none}
    lower_bound = lower_bound.detach().double().cpu()
    least = (-1 / lower_bound.log()).clamp(0, LONGEST)
    return {"lower_bound": _spread(lower_bound), "least_memory": _spread(least)}


def _spread(values: Tensor) -> dict[str, float]:
    return {"low": _number(values.min()), "mean": _number(values.mean()), "high": _number(values.max())}


def _norm(tensor: Tensor) -> Tensor:
    return tensor.abs().square().sum().sqrt()


def _number(value: Tensor) -> float:
    return float(f"{float(value):.6g}")
