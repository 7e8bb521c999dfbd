"""A group of CPU processes that go through a list of checks together: started once for all of them."""

import faulthandler
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

Check = Callable[[], None]


def run_group(world: int, folder: Path, *checks: Check, timeout_s: float = 60) -> None:
    """Run checks, functions of a module, in `world` processes of one gloo group.

    Args:
        folder: where the processes write what failed.
        timeout_s: after which a process that waits for another says where it stands, and ends.

    Raises:
        AssertionError: what failed, by process.
    """
    started: Any = multiprocessing.get_context("spawn")
    arguments = (world, free_port(), str(folder), timeout_s, list(checks))
    processes = [started.Process(target=_work, args=(rank, *arguments), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s + 30
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    told = [path.read_text() for path in sorted(Path(folder).glob("rank-*.txt"))]
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    if any(told) or ended != [0] * world:
        raise AssertionError("\n".join([*told, f"the processes ended with {ended}"]))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def _work(rank: int, world: int, port: int, folder: str, timeout_s: float, checks: list[Check]) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(timeout_s, exit=True)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    failed = ""
    for check in checks:
        try:
            check()
        except BaseException:
            failed = f"{check.__name__} on rank {rank}:\n{traceback.format_exc()}"
            break  # the others wait for this one: nothing that follows would mean anything
    Path(folder, f"rank-{rank}.txt").write_text(failed)
    if not failed:
        dist.destroy_process_group()
    os._exit(1 if failed else 0)
