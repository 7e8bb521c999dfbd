"""Ctrl-C and SIGTERM while a run goes."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls `stop`, which ends the loop after the step at hand; the second one kills."""

    def once(number: int, frame: FrameType | None) -> None:
        stop()
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before: dict[int, Any] = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            before[signum] = signal.signal(signum, once)
    except ValueError:  # not the main thread: whoever runs it there handles signals
        pass
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
