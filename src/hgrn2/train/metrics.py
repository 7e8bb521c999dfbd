"""What a run measured, as one JSON object per line: written as it happens, and whole again after any interruption.

Three kinds of line:

    {"kind": "step", "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes", "elapsed_s"}
    {"kind": "eval", "step", "tokens", "elapsed_s", "loss", "bits_per_byte", "accuracy", "corpora"}
    {"kind": "event", "step", "elapsed_s", "text"}

`loss` is in nats per token, `tokens` counts since the start of the run, `elapsed_s` is training time in seconds summed
over resumes. `mfu` (0 to 1) and `memory_bytes` (the most so far) are null where they are not known, `corpora` has the
loss of each further held-out text by its name; earlier versions wrote none of the three. A number that is not finite is
written as null: JSON has no NaN, and a reader must not choke on one.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

from hgrn2.errors import UserError
from hgrn2.files import parse_json, read_bytes, reported, write_bytes

_FIELDS = {
    "step": ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes", "elapsed_s"),
    "eval": ("step", "tokens", "elapsed_s", "loss", "bits_per_byte", "accuracy", "corpora"),
    "event": ("step", "elapsed_s", "text"),
}


class MetricsWriter:
    """Append records to a JSON-lines file; every line reaches the operating system before the call returns.

    `resume_step=None` goes on after whatever the file holds. `resume_step=s` first drops every line of a later step, so
    that a run interrupted and resumed from its checkpoint of step s leaves the same lines as one that was not. This
    holds when all lines of step s are written before its checkpoint is. In both cases a last line that was cut off is
    removed; any other broken line is a `UserError`.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(self.path):
            _mend(self.path, resume_step)
        # Unbuffered and in append mode: one write a line, so a kill can tear the last line but no earlier one.
        self._stream = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def step(
        self,
        *,
        step: int,
        tokens: int,
        loss: SupportsFloat,
        lr: SupportsFloat,
        grad_norm: SupportsFloat | None,
        tokens_per_s: SupportsFloat,
        elapsed_s: SupportsFloat,
        mfu: SupportsFloat | None = None,
        memory_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Record one optimiser step and return the record, ready for `TrainView.update`."""
        return self.write(
            {
                "kind": "step",
                "step": step,
                "tokens": tokens,
                "loss": _number(loss),
                "lr": _number(lr),
                "grad_norm": _number(grad_norm),
                "tokens_per_s": _number(tokens_per_s),
                "mfu": _number(mfu),
                "memory_bytes": memory_bytes,
                "elapsed_s": _number(elapsed_s),
            }
        )

    def eval(
        self,
        *,
        step: int,
        tokens: int,
        elapsed_s: SupportsFloat,
        loss: SupportsFloat,
        bits_per_byte: SupportsFloat | None = None,
        accuracy: SupportsFloat | None = None,
        corpora: Mapping[str, SupportsFloat] | None = None,
    ) -> dict[str, Any]:
        """Record one measurement on held-out data; `bits_per_byte` is None where bytes are not known, `accuracy` where
        there are no right answers; `corpora` are the losses of further texts."""
        return self.write(
            {
                "kind": "eval",
                "step": step,
                "tokens": tokens,
                "elapsed_s": _number(elapsed_s),
                "loss": _number(loss),
                "bits_per_byte": _number(bits_per_byte),
                "accuracy": _number(accuracy),
                "corpora": {name: _number(found) for name, found in (corpora or {}).items()},
            }
        )

    def event(self, *, step: int, elapsed_s: SupportsFloat, text: str) -> dict[str, Any]:
        """Record something worth knowing later: a checkpoint, a resume, a change of plan."""
        return self.write({"kind": "event", "step": step, "elapsed_s": _number(elapsed_s), "text": text})

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append one record of a known kind with exactly its fields; others are a ValueError."""
        kind = record.get("kind")
        if kind not in _FIELDS or set(record) != {"kind", *_FIELDS[kind]}:
            raise ValueError(f"not a metrics record: {record!r}")
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate in a text (half a character from a byte-level model) has no UTF-8 form of its own.
        data = line.encode("utf-8", errors="replace")
        with reported(self.path):
            place = self._stream.tell()
            written = self._stream.write(data)
            if written != len(data):  # a full disk takes a part of the line, without an error
                os.truncate(self._stream.fileno(), place)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return record

    def close(self) -> None:
        """Flush to disk and close; closing twice is harmless."""
        if not self._stream.closed:
            with reported(self.path):
                os.fsync(self._stream.fileno())
                self._stream.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NoMetrics(MetricsWriter):
    """The same records, written nowhere: of a process that trains beside the one that writes."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = Path(path)

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record."""
        return record

    def close(self) -> None:
        """Nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a file in order; a cut-off last line is left out, other broken lines are `UserError`s."""
    return [record for _, record in _parse(read_bytes(Path(path)), path)]


def _parse(content: bytes, path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """(line without its end, record) for every whole line."""
    lines = content.split(b"\n")
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, f"{path} line {number}", dict)
            whole = record.get("kind") in tuple(_FIELDS) and isinstance(record.get("step"), int)
        except UserError:
            whole = False
            record = None
        if whole:
            pairs.append((line, record))
        elif number < len(lines):  # only what follows the last line end can be torn
            raise UserError(f"{path} line {number} is not a metrics record; mend or remove that line")
    return pairs


def _mend(path: Path, resume_step: int | None) -> None:
    """Rewrite the file, atomically and only if it changes, without a torn end and without steps that are run again."""
    content = read_bytes(path)
    kept = [line for line, record in _parse(content, path) if resume_step is None or record["step"] <= resume_step]
    mended = b"".join(line + b"\n" for line in kept)
    if mended != content:
        write_bytes(path, mended)


def _number(value: SupportsFloat | None) -> float | None:
    """A plain float, from a tensor of one element too; None where there is no finite number."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
