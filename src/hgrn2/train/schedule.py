"""Learning rates over a run, as a share of the peak."""

import math

from hgrn2.train.config import OptimConfig


def lr_share(config: OptimConfig, step: int, progress: float, *, by_clock: bool = False) -> float:
    """The learning rate of the step with this number (from 0) over its peak.

    Linear rise over `warmup_steps` (where the clock decides, over `warmup_share` of the time, if that is over sooner:
    a slow machine has few steps), then cosine or linear in `progress` (0 to 1 over the run, by steps or by the
    clock) down to `final_lr_ratio`, inverse_sqrt sqrt(warmup / step), or constant.
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
        share = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        fall = config.final_lr_ratio + (1 - config.final_lr_ratio) * share
    return rise * fall
