"""What some steps of a run spend their time on: traces of torch.profiler in the run folder."""

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hgrn2.files import atomic_path, reported, write_text

FOLDER = "profile"
ROWS = 40


class StepProfiler:
    """Records the steps of a window (first, last), counted from 1 as in the log, both included; () records none."""

    def __init__(self, window: tuple[int, ...], folder: Path, device: torch.device) -> None:
        self._window, self._folder, self._device = window, folder, device
        self._profile: Any = None
        self._first = self._last = 0

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Around one step."""
        if not self._window or not self._window[0] <= step <= self._window[1]:
            yield
            return
        if self._profile is None:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
            self._first = step
        self._last = step
        with record_function(f"step {step}"):
            yield

    def finished(self, step: int, *, ending: bool) -> Path | None:
        """After a step: write the trace where it was the last of the window, or of this process; returns its path."""
        if self._profile is None or not (ending or step >= self._window[1]):
            return None
        done, self._profile = self._profile, None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        done.stop()
        name = f"steps-{self._first}" if self._first == self._last else f"steps-{self._first}-{self._last}"
        path = self._folder / FOLDER / f"{name}.json.gz"
        with reported(path):
            path.parent.mkdir(exist_ok=True)
            _write_trace(done, path)
            by = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
            write_text(path.with_name(f"{name}.txt"), done.key_averages().table(sort_by=by, row_limit=ROWS))
        return path


def _write_trace(done: Any, path: Path) -> None:
    """As gzipped JSON, which chrome://tracing, Perfetto and TensorBoard read."""
    with tempfile.TemporaryDirectory() as place:
        plain = Path(place) / "trace.json"
        done.export_chrome_trace(str(plain))
        with atomic_path(path) as target, open(plain, "rb") as source, gzip.open(target, "wb", 5) as packed:
            shutil.copyfileobj(source, packed)
