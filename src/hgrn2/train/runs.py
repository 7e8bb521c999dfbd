"""A run folder from outside the loop: made ready, refused where it is another run's, read when the run has ended."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hgrn2.environment import environment
from hgrn2.files import check_utf8, holds_nothing, read_json, remove, write_json
from hgrn2.settings import from_dict, refuse, to_dict

OF_A_RUN = (
    "summary.json", "report.html", "checkpoints", "figures", "profile", "tensorboard", "wandb", "trackers.json",
    "metrics.jsonl", "environment.json",
)  # fmt: skip
"""What --restart removes, in this order: results first, and config.json, which says whose folder it is, never."""


def prepare_folder(
    folder: Path,
    config: Any,
    refuse_other: Callable[[Any], None],
    *,
    restart: bool = False,
    assets: Sequence[str] = (),
) -> None:
    """Make a folder, which the caller owns (`hgrn2.files.owned`), ready for a run: config.json and environment.json.

    Args:
        folder: new, empty, or of this very run.
        config: the run's settings, a dataclass with a `kind`.
        refuse_other: told the settings that the folder holds already; raises where they are another run's.
        restart: drop what the folder holds of an earlier run of this kind.
        assets: names of files and folders beside the usual ones that belong to a run of this kind.

    Raises:
        UserError: a file in the folder's place, other files in it, a run of another kind, or another run.
    """
    path = folder / "config.json"
    check_utf8(folder)
    values = read_json(path, dict) if path.exists() else None
    other = values is not None and values.get("kind") != config.kind
    refuse(other, f"{folder} holds another kind of run; choose an empty or new folder for --out")
    if values is None:
        refuse(not holds_nothing(folder), f"{folder} holds other files; choose an empty or new folder for --out")
    elif restart:
        for name in (*OF_A_RUN, *assets):
            remove(folder / name)
    else:
        refuse_other(from_dict(type(config), values, str(path)))
    write_json(path, to_dict(config))
    write_json(folder / "environment.json", environment())


def read_finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings, summary and machine of a finished run, as its folder holds them.

    Raises:
        UserError: no such folder, no finished run, or files that are not what a run writes.
    """
    found = []
    for name in ("config.json", "summary.json", "environment.json"):
        refuse(not (folder / name).is_file(), f"{folder} holds no finished run: {name} is missing")
        found.append(read_json(folder / name, dict))
    config, summary, machine = found
    return config, summary, machine
