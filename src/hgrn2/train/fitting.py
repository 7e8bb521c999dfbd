"""Whether a run fits into memory, asked before anything of it is made."""

import torch

from hgrn2.memory import refuse_too_big
from hgrn2.models.config import DeiTConfig, ModelConfig, StackConfig
from hgrn2.models.fitting import check_model, parameter_bytes
from hgrn2.parallel.config import ParallelConfig
from hgrn2.train.config import TrainConfig

FULL_LOGITS = 8_192
"""Vocabularies below it have their logits whole in memory when train.loss is auto."""


def check_run(
    model: StackConfig | DeiTConfig, train: TrainConfig, device: torch.device, length: int, *, trained: bool = True,
    logits: bool = True, parallel: ParallelConfig | None = None,
) -> None:  # fmt: skip
    """Refuse a run that surely does not fit.

    Counted are weights, gradients and one running mean of them (12 bytes per parameter); token ids and targets of a
    batch; of one accumulation part what every block keeps at the least (its input, 2 bytes per number), and the logits.

    Args:
        model: its settings.
        train: those of the loop.
        device: where it is trained.
        length: tokens of a sequence, at the least.
        trained: whether the weights are; else they are only held.
        logits: whether a language model is asked for those of every token.
        parallel: the processes among which the run is spread; each makes the whole model at first, to take its part.

    Raises:
        UserError: says how much is needed, how much there is, and what to make smaller.
    """
    check_model(model)
    what = "training this model needs" if trained else "this model needs"
    spread = parallel or ParallelConfig()
    each = max(4, 12 // (spread.sharded * spread.tensor)) if trained else 4
    refuse_too_big(parameter_bytes(model, each), what, "make the model smaller", device=device)
    batch, part = train.batch_size, -(-train.batch_size // (train.accumulate * spread.data))
    length //= spread.context
    smaller = "make train.batch_size or train.sequence_length smaller"
    refuse_too_big(16 * batch * length, f"a batch of {batch:,} sequences of {length:,} tokens needs", smaller)
    kept = 2 * part * length * model.width * model.layers
    if logits and isinstance(model, ModelConfig) and whole_logits(train, model.vocab_size):
        kept += 2 * part * length * model.vocab_size
    what = f"a step on {part:,} sequences of {length:,} tokens needs"
    refuse_too_big(kept, what, f"{smaller}, or train.accumulate larger", device=device)


def whole_logits(train: TrainConfig, vocabulary: int) -> bool:
    """Whether a step has the logits of all its tokens in memory."""
    return train.loss == "full" or (train.loss == "auto" and vocabulary < FULL_LOGITS)
