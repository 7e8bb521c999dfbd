"""One process of a job of `hgrn2 bench distributed`: the trainer's own steps, timed.

Run by `python -m hgrn2.bench.distributed_job JOB_FOLDER`, by itself or under torchrun. The folder's job.json says what
to do; the first process leaves result.json there.
"""

import os
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from hgrn2 import cpu
from hgrn2.bench.attempt import peak_bytes, reset_peak, synchronize
from hgrn2.files import read_json, write_json
from hgrn2.gpu import matrix_rate
from hgrn2.models.count import flops_per_token
from hgrn2.settings import from_dict
from hgrn2.tasks.lm.task import LanguageTask, open_corpora
from hgrn2.train import parallel
from hgrn2.train.alone import ALONE
from hgrn2.train.config import RunConfig
from hgrn2.train.trainer import Trainer

RESUMED = 4
"""Steps after a checkpoint that are taken twice: once by the run that wrote it, once by one that read it."""


class Stepping(Trainer):
    """A trainer that goes as far as it is told."""

    def advance(self, steps: int) -> list[float]:
        """The losses of so many steps; waits for the device at the end."""
        losses = []
        self.model.train()
        for _ in range(steps):
            self._train_step()
            assert self._now is not None
            losses.append(self._now.loss)
        return [float(loss) for loss in losses]

    def timed(self, rounds: int, steps: int) -> list[float]:
        """Tokens/s of each round of so many steps."""
        found = []
        for _ in range(rounds):
            synchronize(self.task.device)
            began = time.perf_counter()
            self.advance(steps)
            synchronize(self.task.device)
            found.append(steps * self.task.tokens_per_step / (time.perf_counter() - began))
        return found


def opened(run: RunConfig, device: str, folder: Path, alive: ExitStack) -> Stepping:
    """The trainer of this process, as `hgrn2.train.run` makes it."""
    ranks = None
    if "RANK" in os.environ:
        ranks, place = alive.enter_context(parallel.started(run.parallel, device))
    else:
        place = torch.device(device)
    task = LanguageTask(run, *open_corpora(run.data), place)
    torch.manual_seed(run.train.seed)
    model = task.model()
    model.set_recompute(run.train.recompute)
    if ranks is None:
        return Stepping(run, task, model, folder, ALONE)
    ranks.spread(model, bfloat16=run.train.precision == "bfloat16")
    return Stepping(run, task, model, folder, parallel.Together(ranks, run, model))


def speed(trainer: Stepping, job: dict[str, Any]) -> dict[str, Any]:
    """Tokens/s of rounds, and the share of the matrix rate that they are."""
    losses = trainer.advance(job["warmup"])
    reset_peak(trainer.task.device)
    samples = trainer.timed(job["rounds"], job["queued"])
    return {"samples": samples, "first_loss": losses[0], **peak_bytes(trainer.task.device)} | _mfu(trainer, samples)


def losses(trainer: Stepping, job: dict[str, Any]) -> dict[str, Any]:
    """Losses of the first steps."""
    return {"losses": trainer.advance(job["warmup"] + job["rounds"])}


def save(trainer: Stepping, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds for which a checkpoint stops training (and those of the processor alone, which other programs do not
    stretch), speed before and while it is written, and until it is whole.

    The second one counts: the first asks the system for memory.
    """
    trainer.advance(job["warmup"])
    before, stalls, writing = trainer.timed(job["rounds"], job["queued"]), [], []
    whole = busy = 0.0
    for _ in range(2):
        synchronize(trainer.task.device)
        began, busy = time.perf_counter(), time.thread_time()
        trainer.save()
        synchronize(trainer.task.device)
        stalls.append(time.perf_counter() - began)
        busy = time.thread_time() - busy
        writing = trainer.timed(1, job["queued"])
        trainer.processes.wait()
        whole = time.perf_counter() - began
    written = sum(path.stat().st_size for path in trainer.folder.glob("checkpoints/step-*/*"))
    return {
        "samples": stalls[1:], "first_stall_s": stalls[0], "processor_s": busy, "whole_s": whole, "bytes": written,
        "tokens_per_s": statistics.median(before), "tokens_per_s_while_writing": writing[0],
    }  # fmt: skip


def long(trainer: Stepping, job: dict[str, Any]) -> dict[str, Any]:
    """Steps to a checkpoint, and on; then again from it, where the losses must come again."""
    half = job["large_steps"] // 2
    device = trainer.task.device
    reset_peak(device)
    found = trainer.advance(half)
    trainer.save()
    trainer.processes.wait()
    began = time.perf_counter()
    found += trainer.advance(job["large_steps"] - half)
    synchronize(device)
    samples = [(job["large_steps"] - half) * trainer.task.tokens_per_step / (time.perf_counter() - began)]
    peak = peak_bytes(device)
    newest, problems = trainer.processes.newest(trainer.folder, trainer.model, trainer.needs)
    assert newest is not None, problems
    trainer.resume(newest)
    again = trainer.advance(min(RESUMED, job["large_steps"] - half))
    apart = max(abs(a - b) for a, b in zip(again, found[half:], strict=False))
    text = {"losses": [round(one, 4) for one in found], "first_loss": found[0], "last_loss": found[-1]}
    return {"samples": samples, **text, "resumed_apart": apart, **peak} | _mfu(trainer, samples)


def _mfu(trainer: Stepping, samples: list[float]) -> dict[str, Any]:
    run: RunConfig = trainer.run  # type: ignore[assignment]
    dtype = torch.bfloat16 if run.train.precision == "bfloat16" else torch.float32
    rate = matrix_rate(trainer.task.device, dtype)
    flops = flops_per_token(run.model, training=True, tokens=run.train.sequence_length // 2)
    each = statistics.median(samples) / run.parallel.ranks
    return {"mfu": round(flops * each / rate, 4), "matmul_tflop_s": round(rate / 1e12, 2)}


KINDS = {"speed": speed, "losses": losses, "save": save, "long": long}


def main(folder: Path) -> None:
    """Carry out this process's part."""
    job = read_json(folder / "job.json", dict)
    run = from_dict(RunConfig, job["run"], str(folder / "job.json"))
    if job["device"] == "cpu":
        cpu.keep_freed_memory()
        torch.set_num_threads(1)
    if hasattr(signal, "alarm") and job["limit_s"]:
        signal.alarm(job["limit_s"])  # should whoever started this be gone
    with ExitStack() as alive:
        trainer = opened(run, job["device"], folder, alive)
        found = KINDS[job["kind"]](trainer, job)
        if trainer.processes.first:
            found["parameters"] = trainer.processes.parameters(trainer.model)
            write_json(folder / "result.json", found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
