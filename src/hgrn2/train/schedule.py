"""Learning rates over a run, as a share of the peak."""

import math
from bisect import bisect_left
from collections.abc import Callable

from hgrn2.train.config import OptimConfig, TrainConfig


def lr_share(config: OptimConfig, step: int, progress: float, *, by_clock: bool = False) -> float:
    """The learning rate of the step with this number (from 0) over its peak.

    Linear rise over `warmup_steps` (where the clock decides, over `warmup_share` of the time, if that is over sooner:
    a slow machine has few steps), then cosine or linear in `progress` (0 to 1 over the run, by steps or by the
    clock) down to `final_lr_ratio`, wsd, which stays at the peak and falls over the last `decay_share` of the run to
    the same ratio, inverse_sqrt sqrt(warmup / step), or constant.
    """
    rise = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    progress = min(max(progress, 0.0), 1.0)
    if by_clock:
        rise = min(max(rise, progress / config.warmup_share if config.warmup_share else 1.0), 1.0)
    if config.schedule == "constant":
        fall = 1.0
    elif config.schedule == "inverse_sqrt":
        fall = math.sqrt(max(config.warmup_steps, 1) / max(step + 1, config.warmup_steps, 1))
    else:
        fall = config.final_lr_ratio + (1 - config.final_lr_ratio) * _left(config, progress)
    return rise * fall


def _left(config: OptimConfig, progress: float) -> float:
    """Of the way from the peak down to the final rate, what is still to be gone: 1 to 0."""
    if config.schedule == "linear":
        return 1 - progress
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    begun = progress - (1 - config.decay_share)
    if not config.decay_share or begun <= 0:
        return 1.0
    done = begun / config.decay_share
    return 1 - (math.sqrt(done) if config.decay_shape == "1-sqrt" else done)


def total_steps(config: TrainConfig, epochs: Callable[[int], float]) -> int:
    """Steps after which a run has ended in any case: `steps`, or those that go through the data `epochs` times."""
    steps, limit = config.steps, config.epochs
    return bisect_left(range(1, steps), limit, key=epochs) + 1 if limit else steps


def progress_of(config: TrainConfig, total: int, step: int, elapsed_s: float) -> float:
    """How much of a run of at most `total` steps is done, 0 to 1: by steps or, with a time budget, by what is sooner
    over."""
    return max(step / total, elapsed_s / config.budget_s) if config.budget_s else step / total
