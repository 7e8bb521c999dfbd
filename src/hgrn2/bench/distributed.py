"""Training on several processes beside one: every job in processes of its own, its row written the moment it ends."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hgrn2.bench.attempt import usable
from hgrn2.bench.distributed_settings import DistributedBench, Job, jobs
from hgrn2.files import read_json, write_json
from hgrn2.gpu import gpu
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement, read_rows
from hgrn2.settings import to_dict

BENCH = "distributed"
UNITS = {"speed": "tokens/s", "long": "tokens/s", "save": "s", "losses": "nats/token"}


def measure(
    bench: DistributedBench, out: Path, record: Callable[[Row], None], progress: Progress = silent, *, again: bool
) -> list[str]:
    """Carry out all jobs that have no row yet.

    Args:
        out: the folder of rows: those of this machine's GPUs are not measured twice.
        record: is given each row as soon as it is there.
        again: measure those too.

    Returns:
        A line for each job that failed, or that the time did not suffice for.
    """
    device = usable(bench.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    done = {} if again else _done(out)
    failures, found, deadline = [], dict[tuple[str, ...], dict[str, Any]](), time.monotonic() + 60 * bench.minutes
    todo = list(jobs(bench, gpus))
    for number, job in enumerate(todo):
        name = f"{job.measurement} {job.shape}, {job.subject}, {max(1, job.world)} processes"
        progress(name, number, len(todo))
        if (kept := done.get(_identity(job.case, job.subject))) is not None:
            found[_group(job)] = found.get(_group(job)) or kept.details | {"samples": [kept.median]}
            continue
        if time.monotonic() > deadline:
            failures.append(f"{name}: {bench.minutes:g} minutes are over; the same command goes on")
            continue
        result = _carried_out(job, bench)
        if isinstance(result, str):
            failures.append(f"{name}: {result}")
            progress(failures[-1], number + 1, len(todo))
            continue
        record(_row(job, result, found.setdefault(_group(job), result)))
    progress("", len(todo), len(todo))
    return failures


def _group(job: Job) -> tuple[str, ...]:
    """Of jobs that are compared with the first of them."""
    return job.measurement, job.shape


def _identity(case: dict[str, Any], subject: str) -> str:
    return f"{subject} {sorted(case.items())}"


def _done(out: Path) -> dict[str, Row]:
    path = out / f"{BENCH}.jsonl"
    here = gpu("cuda") if torch.cuda.is_available() else None
    rows = read_rows(path) if path.is_file() else []
    return {_identity(row.case, row.subject): row for row in rows if row.machine.get("gpu") == (here and here.name)}


def _row(job: Job, result: dict[str, Any], first: dict[str, Any]) -> Row:
    """The row of a job, beside the first of those that it is compared with."""
    details = {name: value for name, value in result.items() if name != "samples"}
    details["layout"] = {name: value for name, value in to_dict(job.run.parallel).items() if name != "wait_s"}
    if job.kind == "losses":
        apart = [abs(a - b) for a, b in zip(result["losses"], first["losses"], strict=True)]
        details |= {"largest_difference": max(apart), "losses": [round(one, 5) for one in result["losses"]]}
        samples = [result["losses"][-1]]
    else:
        samples = result["samples"]
        if job.kind == "speed" and result is not first:
            each = max(1, job.world) if job.measurement == "weak" else 1
            share = statistics.median(samples) / each / statistics.median(first["samples"])
            details["of_first"] = round(share, 4)
    return measurement(BENCH, job.case, job.subject, "torch", samples, UNITS[job.kind], details)


def _carried_out(job: Job, bench: DistributedBench) -> dict[str, Any] | str:
    """What the job's first process found, or in one line why there is nothing."""
    with tempfile.TemporaryDirectory(prefix="hgrn2-job-") as name:
        folder = Path(name)
        asked = {
            "run": to_dict(job.run),
            "kind": job.kind,
            "device": bench.device,
            "limit_s": round(60 * bench.job_minutes) + 60,
        }
        asked |= {one: getattr(bench, one) for one in ("rounds", "queued", "warmup", "large_steps")}
        write_json(folder / "job.json", asked)
        module = ["-m", "hgrn2.bench.distributed_job", name]
        if job.world:
            module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.world), *module]
        code, said = _ran([sys.executable, *module], folder / "log.txt", 60 * bench.job_minutes)
        if code is None:
            return f"given up after {bench.job_minutes:g} minutes"
        if code or not (folder / "result.json").is_file():
            return _why(said)
        return read_json(folder / "result.json", dict)


def _ran(command: list[str], log: Path, seconds: float) -> tuple[int | None, str]:
    """Exit code and output; None where it took too long. Its processes are a group, which ends with it."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return code, log.read_text(errors="replace")


def _why(said: str) -> str:
    """The last line of an error, of those that processes said."""
    errors = [line.strip() for line in said.splitlines() if "Error" in line and "ChildFailedError" not in line]
    return (errors[-1] if errors else said.strip().splitlines()[-1] if said.strip() else "it said nothing")[:300]
