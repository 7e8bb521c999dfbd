"""Weights as vLLM reads them from a folder, one by one, under the names of `hgrn2.LanguageModel`."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from hgrn2.models.config import ModelConfig
from hgrn2.models.convert import fla

_OURS = "model.language."


def named(weights: Iterable[tuple[str, Tensor]], settings: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a folder of ours (`hgrn2 convert to-hf`) or of flash-linear-attention, whose projections lie
    apart and are put together as soon as all of them were read."""
    rules = {part.name: rule for rule in fla.rules(settings) for part in rule.parts}
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, value in weights:
        rule = rules.get(name)
        if rule is None:
            yield ("head.weight" if name == "lm_head.weight" else name.removeprefix(_OURS)), value
            continue
        parts = waiting.setdefault(rule.ours, {})
        parts[name] = value
        if len(parts) == len(rule.parts):
            yield rule.ours, rule.join([parts[part.name] for part in rule.parts])
            del waiting[rule.ours]
