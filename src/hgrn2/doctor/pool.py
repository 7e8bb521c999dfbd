"""Checks in several processes at a time: a GPU's kernels are compiled at first use, which takes longer than a run.

Every process runs one check after the other. One that a check killed, or to which it lost the device, is replaced by a
fresh one, so that a fault is blamed on the check that had it and on no other.
"""

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch

from hgrn2.doctor.checks import Check
from hgrn2.doctor.outcome import Outcome, ThisProcess, outcome_of, usable
from hgrn2.environment import environment
from hgrn2.ops.backend import find

MOST = 8
MEMORY = 2 << 30
"""Bytes of a GPU for every process: its context, libraries and the tensors of a check."""
LATE = 120
"""Seconds after which a process that has not started is not waited for."""


def size(devices: list[torch.device]) -> int:
    """How many processes serve the checks of these devices; 1 means that this one runs them itself."""
    gpus = [device for device in devices if device.type == "cuda"]
    cores = int(environment()["cores"])
    if not gpus or cores <= 2:
        return 1
    memory = min(torch.cuda.get_device_properties(device).total_memory for device in gpus)
    return max(1, min(cores, MOST, memory // MEMORY))


def run(checks: list[Check], workers: int, arrived: Callable[[Outcome], None]) -> list[Outcome]:
    """The outcomes of all checks in their order; `arrived` is told each of them as it comes.

    Where no process can be had (a GPU may admit a single one), this one runs the checks.
    """
    waiting = deque(sorted(range(len(checks)), key=lambda number: _rank(checks[number])))
    results: SimpleQueue[tuple[int, Outcome] | None] = SimpleQueue()
    found: dict[int, Outcome] = {}
    workers = min(workers, len(checks))
    for _ in range(workers):
        threading.Thread(target=_serve, args=(checks, waiting, results, workers), daemon=True).start()
    serving = workers
    while serving:
        if (result := results.get()) is None:
            serving -= 1
        else:
            found[result[0]] = result[1]
            arrived(result[1])
    here = ThisProcess()
    for number in [number for number in range(len(checks)) if number not in found]:
        found[number] = here.run(checks[number])
        arrived(found[number])
    return [found[number] for number in range(len(checks))]


def _rank(check: Check) -> int:
    """Checks that compile large kernels come first, so that none of them is left alone at the end."""
    if not find(check.op, check.backend).compiles:
        return 2
    return 0 if check.op in ("hgru2", "gated_outer_scan") else 1


def _serve(
    checks: list[Check], waiting: deque[int], results: "SimpleQueue[tuple[int, Outcome] | None]", workers: int
) -> None:
    """Have a process run checks until none waits; a thread of its own does this for each process."""
    devices = sorted({check.device for check in checks}, key=str)
    threads = max(1, int(environment()["cores"]) // workers)
    worker: Worker | None = None
    try:
        while waiting:
            worker = worker or Worker(devices, threads)
            if not worker.admitted():
                break
            try:
                number = waiting.popleft()
            except IndexError:  # another thread was quicker
                break
            outcome = worker.run(checks[number])
            results.put((number, outcome))
            if outcome.lost:
                worker.end()
                worker = None
    finally:
        if worker is not None:
            worker.end()
        results.put(None)


class Worker:
    """A process of its own that runs checks."""

    def __init__(self, devices: list[torch.device], threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork has no use of a GPU that its parent has used
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, devices, threads), daemon=True)
        self._process.start()
        other.close()
        self._admitted: bool | None = None

    def admitted(self) -> bool:
        """Whether the process came up and can use every device."""
        if self._admitted is None:
            try:
                self._admitted = self._pipe.poll(LATE) and self._pipe.recv()
            except (EOFError, OSError):
                self._admitted = False
        return bool(self._admitted)

    def run(self, check: Check) -> Outcome:
        """What the check finds; a process that dies of it has failed the check."""
        try:
            self._pipe.send(check)
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return Outcome(check, error=f"the process that ran it ended with {how}", lost=True)

    def end(self) -> None:
        """Whatever it does."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _work(pipe: Connection, devices: list[torch.device], threads: int) -> None:
    """In the process: answer every check with its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    torch.set_num_threads(threads)
    pipe.send(all(usable(device) for device in devices))
    while True:
        try:
            check = pipe.recv()
        except EOFError:
            return
        outcome = outcome_of(check)
        if outcome.lost:
            outcome = replace(outcome, error=f"{outcome.error}; its process lost the device")
        pipe.send(outcome)
