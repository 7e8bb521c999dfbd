"""Checks in several processes at a time: a GPU's kernels are compiled at first use, which takes longer than a run.

A process that a check killed, or to which it lost the device, is replaced by a fresh one, so that a fault is blamed on
the check that had it and on no other.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from hgrn2.doctor.checks import Check
from hgrn2.doctor.outcome import Outcome, ThisProcess, outcome_of, usable
from hgrn2.environment import environment
from hgrn2.gpu import gpu
from hgrn2.ops.backend import find
from hgrn2.pool import Ended, Pool

MOST = 8
MEMORY = 2 << 30
"""Bytes of a GPU for every process: its context, libraries and the tensors of a check."""


def size(devices: list[torch.device]) -> int:
    """How many processes serve the checks of these devices; 1 means that this one runs them itself."""
    gpus = [found for device in devices if (found := gpu(device)) is not None]
    cores = int(environment()["cores"])
    if not gpus or cores <= 2:
        return 1
    return max(1, min(cores, MOST, min(one.memory for one in gpus) // MEMORY))


def run(checks: list[Check], workers: int, arrived: Callable[[Outcome], None]) -> list[Outcome]:
    """The outcomes of all checks in their order; `arrived` is told each of them as it comes.

    Where no process can be had (a GPU may admit a single one), this one runs the checks.
    """
    order = sorted(range(len(checks)), key=lambda number: _rank(checks[number]))
    devices = sorted({check.device for check in checks}, key=str)
    ready = partial(_ready, devices, max(1, int(environment()["cores"]) // workers))
    found: dict[int, Outcome] = {}

    def arrive(number: int, outcome: Outcome) -> None:
        found[number] = outcome
        arrived(outcome)

    with Pool(_in_process, [checks[number] for number in order], workers, ready=ready, leaves=_lost) as pool:
        for place, answer in pool:
            arrive(order[place], _dead(checks[order[place]], answer) if isinstance(answer, Ended) else answer)
    here = ThisProcess()
    for number in sorted(order[place] for place in pool.left):
        arrive(number, here.run(checks[number]))
    return [found[number] for number in range(len(checks))]


def _rank(check: Check) -> int:
    """Checks that compile large kernels come first, so that none of them is left alone at the end."""
    if not find(check.op, check.backend).compiles:
        return 2
    return 0 if check.op in ("hgru2", "gated_outer_scan") else 1


def _dead(check: Check, ended: Ended) -> Outcome:
    return Outcome(check, error=f"the process that ran it ended with {ended}", lost=True)


def _lost(outcome: Outcome) -> bool:
    return outcome.lost


def _ready(devices: list[torch.device], threads: int) -> bool:
    """In a process: whether it can use every device."""
    torch.set_num_threads(threads)
    return all(usable(device) for device in devices)


def _in_process(check: Check) -> Outcome:
    outcome = outcome_of(check)
    return replace(outcome, error=f"{outcome.error}; its process lost the device") if outcome.lost else outcome
