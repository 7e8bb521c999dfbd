"""Memory lengths of forget gates at the tokens that a step reads: −1 / mean of log f over the channels of a head."""

from typing import Any

from torch import Tensor

from hgrn2.models.language import LanguageModel

LONGEST = 1e9
"""Tokens; a head that forgets nothing has this memory length."""


def memory_lengths(
    model: LanguageModel, entered: list[Tensor], convolved: list[Tensor | None]
) -> list[Tensor | None]:  # fmt: skip
    """Memory lengths [B,H] in tokens of every layer; None for a layer without such gates.

    Args:
        model: the model that made a step, inside `reading(model)`.
        entered: what each block was given [B,1,D], as `trace` of `LanguageModel.hidden` has it.
        convolved: the inputs of each layer's short convolution before the step, None where it has none.
    """
    found: list[Tensor | None] = []
    backbone: Any = model.backbone
    for block, x, lower_bound, past in zip(
        backbone.blocks, entered, backbone.layer_lower_bounds(), convolved, strict=False
    ):
        mixer: Any = block.mixer
        log_forget = getattr(mixer, "log_forget", None)
        if log_forget is None:
            found.append(None)
            continue
        logs = log_forget(block.mixer_norm(x), lower_bound, past)
        found.append(None if logs is None else lengths(logs[:, 0], getattr(mixer, "heads", 1) or 1))
    return found


def lengths(log_forget: Tensor, heads: int) -> Tensor:
    """log f [B,D] -> memory lengths [B,H] in tokens, at most `LONGEST`."""
    mean = log_forget.float().unflatten(-1, (heads, -1)).mean(-1)
    return (-1 / mean.clamp(max=-1 / LONGEST)).clamp(max=LONGEST)


def of_row(found: list[Tensor | None], row: int) -> list[list[float] | None]:
    """One text's memory lengths as plain numbers, of four digits."""
    return [None if layer is None else [float(f"{value:.4g}") for value in layer[row].tolist()] for layer in found]
