"""Stop a run that has gone wrong before it overwrites the last good checkpoint."""

import math
from collections import deque

import torch
from torch import Tensor

from hgrn2.errors import UserError


class Diverged(UserError):
    """The numbers of a run are not finite any more, or its loss has risen for good."""


class LossGuard:
    """Watches logged losses: one that is not finite stops the run at once, one that stays high after `patience`.

    High means more than `spike` nats above the median of the last 200 accepted losses.
    """

    def __init__(self, spike: float, patience: int = 20, memory: int = 200) -> None:
        self.spike, self.patience = spike, patience
        self.accepted: deque[float] = deque(maxlen=memory)
        self.high = 0

    def check_finite(self, step: int, loss: float, grad_norm: float, last_good: str) -> None:
        """Raise `Diverged` where a value is not finite; `last_good` says what can be resumed."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise Diverged(f"the {name} became {value} at step {step}; {last_good}; try a lower learning rate")

    def check(self, step: int, loss: float, grad_norm: float, last_good: str) -> None:
        """Take in a logged step; raise `Diverged` with one clear line where the run must stop."""
        self.check_finite(step, loss, grad_norm, last_good)
        usual = sorted(self.accepted)[len(self.accepted) // 2] if len(self.accepted) >= self.patience else math.inf
        if self.spike and loss > usual + self.spike:
            self.high += 1
            if self.high >= self.patience:
                raise Diverged(
                    f"the loss has stayed more than {self.spike:g} nats above its usual {usual:.3f} up to step {step} "
                    f"(now {loss:.3f}); {last_good}; try a lower learning rate or train.spike=0"
                )
            return
        self.high = 0
        self.accepted.append(loss)

    def state(self) -> dict[str, object]:
        """What an exact resume needs."""
        return {"accepted": list(self.accepted), "high": self.high}

    def load(self, state: dict) -> None:  # type: ignore[type-arg]
        """Take back what `state` gave."""
        self.accepted.extend(state["accepted"])
        self.high = state["high"]


def check_tensors(step: int, weights: dict[str, Tensor], states: dict[str, Tensor], last_good: str) -> None:
    """Raise `Diverged` where a step left a number that is not finite in the weights or in an optimiser's states, or
    weights so large that their squares, which norms and gradients take, are not."""
    found = {
        name: value.float().square().sum().isfinite() for name, value in weights.items() if value.is_floating_point()
    }
    found |= {name: value.isfinite().all() for name, value in states.items() if value.is_floating_point()}
    for device in {flag.device for flag in found.values()}:  # one wait for each, whatever the number of tensors
        here = [name for name, flag in found.items() if flag.device == device]
        fine = torch.stack([found[name] for name in here]).tolist()
        bad = [name for name, one in zip(here, fine, strict=True) if not one]
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise Diverged(
                f"the update of step {step} left numbers that are too large or not finite in {bad[0]}{more}; "
                f"{last_good}; try a lower learning rate"
            )
