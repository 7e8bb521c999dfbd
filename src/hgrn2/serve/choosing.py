"""The next token of texts that stand side by side, each by its own settings; and probabilities, where asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hgrn2.generate import sampling
from hgrn2.generate.config import SamplingConfig
from hgrn2.serve.request import Token


@dataclass(eq=False)
class Choice:
    """How one text chooses."""

    config: SamplingConfig
    """Without the seed: texts with equal settings are chosen for together."""
    random: torch.Generator
    seen: Tensor | None
    """[V] bool, ids that occurred, where the repetition penalty needs them."""

    @staticmethod
    def of(config: SamplingConfig, sample: int, ids: Tensor, vocabulary: int, device: torch.device) -> "Choice":
        """The choice of sample number `sample` after the tokens `ids`."""
        assert config.seed is not None  # whoever makes a request draws one
        seen = None
        if config.repetition_penalty != 1:
            seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            seen[ids.to(device)] = True
        return Choice(replace(config, seed=None), torch.Generator().manual_seed(config.seed + sample), seen)


def choose(logits: Tensor, choices: Sequence[Choice]) -> list[int]:
    """The next token of each row of logits [B,V], -1 where they are not finite. A row's does not depend on others."""
    groups: dict[SamplingConfig, list[int]] = {}
    for row, choice in enumerate(choices):
        groups.setdefault(choice.config, []).append(row)
    chosen = [0] * len(choices)
    with torch.inference_mode():
        for config, rows in groups.items():
            for row, token in zip(rows, _choose(logits, choices, config, rows), strict=True):
                chosen[row] = token
                seen = choices[row].seen
                if seen is not None and token >= 0:
                    seen[token] = True
    return chosen


def _choose(logits: Tensor, choices: Sequence[Choice], config: SamplingConfig, rows: list[int]) -> list[int]:
    own = logits if len(rows) == len(logits) else logits[rows]
    uniforms, seen = None, None
    if not config.greedy:
        uniforms = sampling.uniforms([choices[row].random for row in rows]).to(logits.device)
    if config.repetition_penalty != 1:
        seen = torch.stack([seen for row in rows if (seen := choices[row].seen) is not None])
    return sampling.pick(own, config, uniforms, seen).tolist()


def listed(logits: Tensor, token: int, alternatives: int) -> Token:
    """A token beside the most probable ones, by the model's own distribution: logits [V], before any setting."""
    logs = logits.double().log_softmax(-1)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        best = logs.topk(min(alternatives, logs.shape[-1]))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(logs[token]), top)
