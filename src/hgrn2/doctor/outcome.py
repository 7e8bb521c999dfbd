"""What a check found, and whether the process that ran it can go on."""

import time
from dataclasses import dataclass

import torch

from hgrn2.doctor.checks import Check
from hgrn2.testing.compare import Finding


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    check: Check
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    error: str = ""
    """The first line of what was raised instead of a result."""
    unfinished: bool = False
    """Not the kernel's fault: memory ran out, or an earlier fault took the device away."""
    lost: bool = False
    """The fault left the device unusable for the process that ran the check."""

    @property
    def ok(self) -> bool:
        """Every result near enough to the reference."""
        return not self.error and all(finding.ok for finding in self.findings)

    @property
    def worst(self) -> Finding | None:
        """The finding that is farthest beyond what is allowed, or nearest to it."""
        measured = [finding for finding in self.findings if finding.error == finding.error]  # not NaN
        if len(measured) < len(self.findings):
            return next(finding for finding in self.findings if finding.error != finding.error)
        return max(measured, key=lambda finding: finding.error / finding.allowed, default=None)

    @property
    def what(self) -> str:
        """What is wrong, in a few words."""
        if self.error:
            return self.error
        worst = self.worst
        return f"{worst.what} off by {worst.error:.2g}, allowed {worst.allowed:.2g}" if worst else ""


def outcome_of(check: Check) -> Outcome:
    """Run a check; whatever a kernel or its compiler raises is what it found."""
    begin = time.perf_counter()
    try:
        findings = tuple(check.run())
    except torch.cuda.OutOfMemoryError as error:
        return Outcome(check, time.perf_counter() - begin, error=first_line(error), unfinished=True)
    except Exception as error:
        lost = not usable(check.device)
        return Outcome(check, time.perf_counter() - begin, error=first_line(error), lost=lost)
    return Outcome(check, time.perf_counter() - begin, findings)


class ThisProcess:
    """Runs checks here, none of them on a device that an earlier one has lost."""

    def __init__(self) -> None:
        self._lost: set[torch.device] = set()

    def run(self, check: Check) -> Outcome:
        """What the check finds."""
        if check.device in self._lost:
            return Outcome(check, error="an earlier fault took the device away", unfinished=True)
        outcome = outcome_of(check)
        if outcome.lost:
            self._lost.add(check.device)
        return outcome


def first_line(error: Exception) -> str:
    """The kind of an exception and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def usable(device: torch.device) -> bool:
    """Whether this process can use the device: not after a stray access to its memory."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError):  # the latter from a torch without CUDA
        return False
    return True
