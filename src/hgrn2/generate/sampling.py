"""From logits to a token, as pure functions on logits [B,V]; what is filtered out becomes -inf.

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw

Each filter sees what the ones before it left, as in the transformers library, so equal settings mean the same there.
Whatever is drawn from is float64 with its maximum at 0, so that no setting overflows: a temperature towards 0 becomes
the most probable token.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.generate.config import SamplingConfig

COLDEST = 1e-290  # temperature: its inverse is finite, and any two different logits are already infinitely far apart
NOT_FINITE = "the model's output is not a finite number; its weights are damaged or training diverged"


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of ids that occurred (seen [B,V] bool): divided by the penalty where positive, multiplied where negative.

    Keskar et al. 2019, arXiv 1909.05858, section 4.1, with the sign repair that implementations make.
    """
    kind = torch.finfo(logits.dtype)
    moved = torch.where(logits > 0, logits / penalty, logits * penalty).clamp(kind.min, kind.max)
    return torch.where(seen & (logits > -math.inf), moved, logits)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row, and those equal to the k-th."""
    if k >= logits.shape[-1]:
        return logits
    edge = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < edge, -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most probable tokens whose probabilities sum to at least p (arXiv 1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    dropped = before >= p
    dropped[..., 0] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as probable as the most probable one (arXiv 2407.01082)."""
    edge = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < edge, -math.inf)


def filtered(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Logits [B,V] after every step of the settings that is on; float64 with a maximum of 0, unless greedy."""
    if seen is not None and config.repetition_penalty != 1:
        logits = penalise_repetition(logits.double(), seen, config.repetition_penalty)
    if config.greedy:
        return logits
    logits = logits.double()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(config.temperature, COLDEST)
    if config.top_k:
        logits = top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = top_p(logits, config.top_p)
    return min_p(logits, config.min_p) if config.min_p else logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row [B] from softmax(logits): the first whose cumulative probability exceeds the row's uniform [0,1).

    A token of probability 0 is never drawn. One number decides a row, so a seed means the same on every device.
    """
    sums = logits.double().softmax(-1).cumsum(-1)
    sums = sums / sums[..., -1:]  # ends at exactly 1, which is above every uniform
    return torch.searchsorted(sums, uniforms.to(sums).unsqueeze(-1), right=True).squeeze(-1)


def pick(logits: Tensor, config: SamplingConfig, uniforms: Tensor | None, seen: Tensor | None = None) -> Tensor:
    """The next token of each row, [B] int64, and -1 in a row whose logits are not finite; the host waits for nothing.

    Args:
        logits: [B,V].
        config: the settings.
        uniforms: [B] in [0,1), on the device of the logits; not needed for greedy.
        seen: [B,V] bool, ids that occurred already; needed for the repetition penalty only.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    finite = torch.isfinite(logits.amax(-1))  # NaN wins every maximum
    logits = filtered(logits, config, seen)
    if config.greedy or uniforms is None:
        chosen = logits.argmax(-1)
    else:
        chosen = draw(logits, uniforms)
    return torch.where(finite, chosen, -1)


def uniforms(generators: Sequence[torch.Generator]) -> Tensor:
    """A number in [0,1) from each generator [B], float64 on the CPU."""
    return torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])


def choose(
    logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator] = (), seen: Tensor | None = None
) -> Tensor:
    """The next token of each row, [B] int64.

    Args:
        logits: [B,V].
        config: the settings.
        generators: one per row, on the CPU, each advanced by one number; not needed for greedy.
        seen: [B,V] bool, ids that occurred already; needed for the repetition penalty only.

    Raises:
        UserError: logits that are NaN or infinite, as a damaged or diverged model gives.
    """
    numbers = None if config.greedy else uniforms(generators).to(logits.device)
    chosen = pick(logits, config, numbers, seen)
    if bool((chosen < 0).any()):
        raise UserError(NOT_FINITE)
    return chosen
