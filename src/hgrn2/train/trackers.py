"""Where a run's measurements go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio.

One interface, `Tracker`, and one adapter for each package, which is imported when a run asks for it. A tracker that
fails, as without a network, is told once and left alone: training goes on. Only the first of several processes has any.
"""

import contextlib
import contextvars
import importlib
import importlib.util
import io
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hgrn2.files import read_json, write_json
from hgrn2.settings import refuse

FILE = "trackers.json"
CLOSE_S = 60.0
"""Seconds that a tracker may take in the end to send what it still has."""
_NOT_SHOWN = ("kind", "step", "elapsed_s", "corpora", "tokens")


class Tracker(Protocol):
    """What a package must be able to do."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take in numbers by name, as in `train/loss`, after so many steps."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class Start(NamedTuple):
    """What a tracker is begun with."""

    folder: Path
    """The run folder."""
    project: str
    run_id: str
    """Random, of this run folder, so that a resumed run continues its series."""
    config: dict[str, Any]
    step: int
    """Steps that the run has taken: what was recorded after them is taken back where that is possible."""


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier process wrote of steps that are taken again is hidden.
        self._writer = SummaryWriter(str(start.folder / "tensorboard"), purge_step=start.step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, whose files lie in `wandb/` of the run folder; its environment variables hold, such as
    WANDB_MODE=offline. It is never asked for a login in the middle of a run."""

    def __init__(self, start: Start) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=30, login_timeout=1)
        self._run = wandb.init(
            project=start.project, name=start.folder.resolve().name, id=start.run_id, resume="allow",
            dir=str(start.folder), config=start.config, settings=settings,
        )  # fmt: skip
        # By our own count of steps: theirs only rises, and a run may be resumed from before its last record.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, in its own folder or where its environment variables say."""

    def __init__(self, start: Start) -> None:
        trackio: Any = importlib.import_module("trackio")
        # It keeps its run in context variables, and is closed in another thread than this one.
        self._trackio, self._context = trackio, contextvars.copy_context()
        name = f"{start.folder.resolve().name}-{start.run_id}"
        begin = partial(trackio.init, project=start.project, name=name, config=start.config, resume="allow")
        with contextlib.redirect_stdout(io.StringIO()):  # it greets
            self._context.run(begin, embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._context.run(self._trackio.log, dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._context.run(self._trackio.finish)


TRACKERS: dict[str, Callable[[Start], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def check_installed(names: tuple[str, ...]) -> None:
    """Refuse a tracker whose package is missing, before anything of a run is made."""
    for name in names:
        spec = importlib.util.find_spec(name)
        # A folder of that name that happens to lie in the current directory has no origin.
        missing = spec is None or spec.origin is None
        refuse(missing, f"train.trackers={name} needs the package {name}: pip install 'hgrn2[{name}]'")


class Trackers:
    """All trackers of a run."""

    def __init__(self, names: tuple[str, ...], start: Start, tell: Callable[[str], None]) -> None:
        """tell: takes the one line about a tracker that failed."""
        self._tell, self._open = tell, dict[str, Tracker]()
        for name in names:
            with self._told(name, "was not started"):
                self._open[name] = TRACKERS[name](start)

    @contextlib.contextmanager
    def _told(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a package raises: it must not end a run
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._tell(f"{name} {what}: {reason}; training goes on without it")

    def take(self, record: Mapping[str, Any]) -> None:
        """Hand on a line of metrics.jsonl."""
        values = numbers(record)
        for name, tracker in list(self._open.items()) if values else ():
            with self._told(name, f"failed at step {record['step']}"):
                tracker.log(record["step"], values)

    def close(self) -> None:
        """Send what is left, for a minute at most."""
        for name, tracker in list(self._open.items()):
            with self._told(name, "was not closed"):
                _in_time(tracker.close)
        self._open.clear()


def _in_time(call: Callable[[], None]) -> None:
    """Call in a thread of its own, which is left behind when it takes too long."""
    failed: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(CLOSE_S)
    if thread.is_alive():
        raise TimeoutError(f"it was still sending after {CLOSE_S:.0f} s")
    if failed:
        raise failed[0]


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by the names that trackers show: train/loss, train/lr, train/grad_norm,
    train/tokens_per_s, train/mfu, train/memory_bytes; valid/loss, valid/bits_per_byte, valid/accuracy and, of further
    corpora, valid/NAME/loss."""
    before = {"step": "train", "eval": "valid"}.get(record["kind"])
    if before is None:
        return {}
    found = {f"{before}/{name}": value for name, value in record.items() if name not in _NOT_SHOWN}
    found |= {f"{before}/{name}/loss": value for name, value in record.get("corpora", {}).items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def run_id(folder: Path) -> str:
    """Of this run folder, made at the first call."""
    path = folder / FILE
    if path.is_file():
        return str(read_json(path, dict).get("run_id", ""))
    made = secrets.token_hex(6)
    write_json(path, {"run_id": made})
    return made
