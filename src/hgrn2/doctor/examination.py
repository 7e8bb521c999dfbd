"""Run the checks, remember what is wrong, and say in plain sentences what that means."""

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from hgrn2.doctor import machine, processes
from hgrn2.doctor.checks import OPS, Check, planned
from hgrn2.doctor.outcome import Outcome, ThisProcess
from hgrn2.doctor.speed import slow_parts
from hgrn2.ops import known_bad
from hgrn2.ops.backend import find
from hgrn2.progress import Progress, silent


@dataclass(frozen=True)
class Examination:
    """All outcomes, and what the user should know."""

    outcomes: list[Outcome]
    sentences: list[str] = field(default_factory=list)
    """One for each fault; empty where all is well."""
    seconds: float = 0.0
    """How long everything took."""

    @property
    def healthy(self) -> bool:
        """Whether every check was made and passed."""
        return all(outcome.ok for outcome in self.outcomes)


def examine(
    devices: list[torch.device],
    ops: tuple[str, ...] = OPS,
    progress: Progress = silent,
    workers: int | None = None,
) -> Examination:
    """Run every check; what fails is avoided by `auto` from then on, what passes is trusted again.

    workers: processes at a time; 1 runs everything in this one. Without it `processes.size` says.
    """
    begin = time.perf_counter()
    checks = planned(devices, ops)
    workers = processes.size(devices) if workers is None else workers
    if workers > 1:
        outcomes = _together(checks, workers, progress)
    else:
        outcomes = _one_by_one(checks, progress)
    progress("done", len(checks), len(checks))
    sentences = _sentences(outcomes, _remember(outcomes))
    return Examination(outcomes, sentences, time.perf_counter() - begin)


def _stage(check: Check) -> str:
    return f"{check.device}: {check.op} on {check.backend}"


def _one_by_one(checks: list[Check], progress: Progress) -> list[Outcome]:
    outcomes, here = [], ThisProcess()
    for number, check in enumerate(checks):
        progress(_stage(check), number, len(checks))
        outcomes.append(here.run(check))
    return outcomes


def _together(checks: list[Check], workers: int, progress: Progress) -> list[Outcome]:
    progress(f"{workers} processes are starting", 0, len(checks))
    done = itertools.count(1)
    return processes.run(checks, workers, lambda outcome: progress(_stage(outcome.check), next(done), len(checks)))


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
    return known_bad.remember(
        [(op, find(op, backend), device, what) for (op, backend, device), what in wrong.items()],
        [(op, find(op, backend), device) for op, backend, device in right],
    )


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
        "slow": slow_parts(devices),
        "checks": [_row(outcome) for outcome in examination.outcomes],
        "sentences": examination.sentences,
        "seconds": round(examination.seconds, 1),
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
