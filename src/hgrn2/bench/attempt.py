"""One measurement that may fail, or take too long, without harm to those after it."""

import gc
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from hgrn2.errors import UserError
from hgrn2.gpu import ROUNDS

COPIED = {"cuda": 2 << 30, "cpu": 128 << 20}
"""Bytes."""


@dataclass
class Attempt:
    """Filled when the block ends."""

    why: str | None = None
    """Why it failed, in one line; None where it did not."""


class OutOfTime(Exception):
    """The time that an attempt may take is over."""


@contextmanager
def attempt(seconds: float) -> Iterator[Attempt]:
    """Keep an error of the block to itself, give it up after `seconds`, and free the GPU memory that it took.

    The caller must not hold what the block has made: call a function in it. Time is limited in the main thread only.
    """
    outcome = Attempt()
    free()  # an exception that is still under way kept what its frames held, when the last attempt ended
    try:
        with _time_limit(seconds):
            yield outcome
    except OutOfTime:
        outcome.why = f"given up after {seconds:.0f} s"
    except torch.OutOfMemoryError as error:
        outcome.why = f"out of memory ({_line(error)})"
    except Exception as error:  # a compiler's, a kernel's: whatever it is, the other models are still wanted
        outcome.why = _line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_line(error)}"
    finally:
        free()


def free() -> None:
    """Give back the memory that PyTorch keeps for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin a new peak of the GPU memory in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> dict[str, int]:
    """For a row: the most GPU memory in use since then; nothing on a CPU."""
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


def copy_rate(device: torch.device) -> float:
    """Bytes per second, those read and those written, of copying much more than a cache holds; the median of some."""
    source = torch.randn(COPIED.get(device.type, COPIED["cpu"]) // 4, device=device)
    target, rates = torch.empty_like(source), []
    for _ in range(ROUNDS + 1):  # the first does not count
        synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        rates.append(2 * source.nbytes / (time.perf_counter() - began))
    return sorted(rates[1:])[ROUNDS // 2]


def usable(device: str) -> torch.device:
    """The device; a `UserError` where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that PyTorch can use; there is none here")
    return torch.device(device)


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    outer = signal.setitimer(signal.ITIMER_REAL, seconds)[0]  # what is left of an attempt around this one
    if 0 < outer < seconds:
        signal.setitimer(signal.ITIMER_REAL, outer)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 1e-3))
