"""Whether a run folder holds the run that is asked for: every setting that changes what is learned is compared."""

import json
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.settings import to_dict
from hgrn2.train.config import Run

FREE = {
    "steps", "budget_s", "epochs", "patience", "log_every", "eval_every", "eval_tokens", "save_every", "keep", "spike",
    "compile", "compile_blocks", "graphs", "loss", "recompute", "trackers", "tracker_project", "profile",
}  # fmt: skip
"""Settings of `train` that may change from call to call: how long the run is, what it records, and by which kernels and
in which memory the same numbers are computed. `accumulate` is not among them: the parts of a batch draw what is random
by themselves."""
_SHOWN = 4


def refuse_other_run(folder: Path, run: Run, saved: Run) -> None:
    """A resumed run must be the run that was started; what differs is named with both values."""
    refuse_different(folder, compared(run), compared(saved))


def compared(run: Run) -> dict[str, Any]:
    """The settings of a run that decide what it learns."""
    found = {name: getattr(run, name) for name in ("kind", "task", "start_tokens") if hasattr(run, name)}
    found |= {name: to_dict(getattr(run, name)) for name in ("model", "data", "optim")}
    found["data"].pop("validation", None)  # what is measured besides teaches nothing
    return found | {"train": {name: value for name, value in to_dict(run.train).items() if name not in FREE}}


def refuse_different(
    folder: Path, asked: Any, held: Any, what: str = "a run", hint: str = "--restart to begin it anew, or another --out"
) -> None:
    """Refuse a folder whose settings are not those asked for; each that differs is named with both values."""
    found = differences(asked, held)
    if not found:
        return
    told = ", ".join(f"{name} is {_text(theirs)} there and {_text(mine)} here" for name, mine, theirs in found[:_SHOWN])
    more = f", and {len(found) - _SHOWN} more settings differ" if len(found) > _SHOWN else ""
    raise UserError(
        f"{folder} holds {what} with other settings: {told}{more}; give the same settings to go on with it, {hint}"
    )


class _Absent:
    """Stands for a setting that one side does not have."""

    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def differences(asked: Any, held: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(name, value asked for, value held) of every setting that differs, in order; JSON's lists equal tuples."""
    if isinstance(asked, dict) and isinstance(held, dict):
        found = []
        for key in {**asked, **held}:
            inner = f"{name}.{key}" if name else str(key)
            found += differences(asked.get(key, _ABSENT), held.get(key, _ABSENT), inner)
        return found
    same = (list(asked) == list(held)) if _listed(asked) and _listed(held) else asked == held
    return [] if same else [(name, asked, held)]


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _text(value: Any) -> str:
    if isinstance(value, _Absent):
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
