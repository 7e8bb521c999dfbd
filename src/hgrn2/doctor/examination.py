"""Run the checks, remember what is wrong, and say in plain sentences what that means."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hgrn2.doctor import machine
from hgrn2.doctor.checks import OPS, Check, planned
from hgrn2.ops import distrust
from hgrn2.testing.compare import Finding

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    check: Check
    seconds: float
    findings: tuple[Finding, ...] = ()
    error: str = ""
    """The first line of what was raised instead of a result."""
    unfinished: bool = False
    """Not the kernel's fault: memory ran out, or an earlier fault took the device away."""

    @property
    def ok(self) -> bool:
        """Every result near enough to the truth."""
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


@dataclass(frozen=True)
class Examination:
    """All outcomes, and what the user should know."""

    outcomes: list[Outcome]
    sentences: list[str] = field(default_factory=list)
    """One for each fault; empty where all is well."""

    @property
    def healthy(self) -> bool:
        """Whether every check was made and passed."""
        return all(outcome.ok for outcome in self.outcomes)


def examine(devices: list[torch.device], ops: tuple[str, ...] = OPS, progress: Progress | None = None) -> Examination:
    """Run every check; what fails is avoided by `auto` from then on, what passes is trusted again."""
    tell = progress or (lambda stage, done, total: None)
    checks = planned(devices, ops)
    outcomes: list[Outcome] = []
    lost: set[torch.device] = set()
    for number, check in enumerate(checks):
        tell(f"{check.device}: {check.op} on {check.backend}", number, len(checks))
        if check.device in lost:
            outcomes.append(Outcome(check, 0.0, error="an earlier fault took the device away", unfinished=True))
            continue
        outcomes.append(_outcome(check))
        if outcomes[-1].error and _is_lost(check.device):
            lost.add(check.device)
    tell("done", len(checks), len(checks))
    return Examination(outcomes, _sentences(outcomes, _remember(outcomes)))


def _outcome(check: Check) -> Outcome:
    begin = time.perf_counter()
    try:
        findings = tuple(check.run())
    except torch.cuda.OutOfMemoryError as error:
        return Outcome(check, time.perf_counter() - begin, error=_first_line(error), unfinished=True)
    except Exception as error:  # whatever a kernel or its compiler raises is a finding here
        return Outcome(check, time.perf_counter() - begin, error=_first_line(error))
    return Outcome(check, time.perf_counter() - begin, findings)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _is_lost(device: torch.device) -> bool:
    """Whether the fault left the device unusable for this process, as a stray access to its memory does."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).item()
    except RuntimeError:
        return True
    return False


def _remember(outcomes: list[Outcome]) -> bool:
    """Write down who failed and who passed all of its checks; returns whether it could be written."""
    wrong: dict[tuple[str, str, torch.device], str] = {}
    unknown: set[tuple[str, str, torch.device]] = set()
    for outcome in outcomes:
        key = (outcome.check.op, outcome.check.backend, outcome.check.device)
        if outcome.unfinished:
            unknown.add(key)
        elif not outcome.ok:
            wrong.setdefault(key, outcome.what)
    keys = {(outcome.check.op, outcome.check.backend, outcome.check.device) for outcome in outcomes}
    right = keys - wrong.keys() - unknown
    return distrust.remember([(*key, what) for key, what in wrong.items()], right)


def _sentences(outcomes: list[Outcome], kept: bool) -> list[str]:
    said: dict[tuple[str, str, torch.device], str] = {}
    for outcome in outcomes:
        check = outcome.check
        key = (check.op, check.backend, check.device)
        if outcome.unfinished:
            said.setdefault(key, f"{check} could not be checked on {check.device}: {outcome.what}.")
        elif not outcome.ok and key not in said:
            said[key] = f"{check} is wrong on {check.device} ({outcome.what}): {_instead(check, kept)}."
    return list(said.values())


def _instead(check: Check, kept: bool) -> str:
    """What will run in place of a backend that failed."""
    if not kept:
        return (
            "it will still be used, because this could not be written down; make HGRN2_CACHE a folder to which only "
            "you can write and run hgrn2 doctor again, or pass another backend by name"
        )
    instead = machine.chosen(check.op, check.device, check.dtype, check.case.complex)
    return f"backend auto will use {instead} instead" if instead != check.backend else "nothing can take its place"


def as_json(examination: Examination, devices: list[torch.device]) -> dict[str, Any]:
    """Everything as plain JSON values."""
    return {
        "healthy": examination.healthy,
        "machine": machine.machine(),
        "devices": [
            {"device": str(device), "name": machine.name_of(device), "choices": machine.choices(device)}
            for device in devices
        ],
        "checks": [_row(outcome) for outcome in examination.outcomes],
        "sentences": examination.sentences,
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    check, worst = outcome.check, outcome.worst
    numbers = {} if worst is None else {"worst": worst.what, "error": str(worst.error), "allowed": worst.allowed}
    return {
        "op": check.op,
        "backend": check.backend,
        "device": str(check.device),
        "dtype": str(check.dtype).removeprefix("torch."),
        "case": str(check.case),
        "ok": outcome.ok,
        "failure": "" if outcome.ok else outcome.what,
        "seconds": round(outcome.seconds, 3),
        **numbers,
    }
