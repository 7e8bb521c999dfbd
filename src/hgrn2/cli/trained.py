"""What every training verb takes and does: its options, how a run ended, and the commands that fit this run."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import tyro

from hgrn2 import console
from hgrn2.files import read_json

if TYPE_CHECKING:
    from hgrn2.train.run import RunResult

PROMPT = 40  # characters of one's own text, at most, in a suggested command
Flag = tyro.conf.FlagCreatePairsOff[bool]
Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
Settings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """Options and course of a verb that trains; each says which run it is (`train`) and what to show (`show`)."""

    out: Folder = Path("runs")
    """Run folder, new or of this very run."""
    set: Settings = ()
    """Any setting of the run; hgrn2 settings names them."""
    device: str = "auto"
    """auto, cpu or cuda."""
    restart: Flag = False
    """Drop what the folder holds of an earlier run and begin anew."""
    json: Flag = False
    """Print the summary as JSON and show no live view."""

    def run(self) -> int:
        """Returns the exit code: 0, or 130 after Ctrl-C with a checkpoint."""
        result = self.train()
        if not result.first:  # of several processes: the first one tells
            return 130 if result.interrupted else 0
        return ended(result, self.json, self.show, **self.more(result))

    @abstractmethod
    def train(self) -> "RunResult":
        """Make the run's settings of the options, and train."""

    @abstractmethod
    def show(self, result: Any) -> None:
        """Print for people what a finished run came to."""

    def more(self, result: Any) -> dict[str, Any]:
        """What the JSON has beside the summary."""
        return {}

    @property
    def how(self) -> dict[str, Any]:
        """What every task's function to train with takes beside settings and folder."""
        return {"device": self.device, "restart": self.restart, "quiet": self.json}


class Result(Protocol):
    """What a run ended with."""

    @property
    def folder(self) -> Path: ...
    @property
    def interrupted(self) -> bool: ...
    @property
    def step(self) -> int: ...
    @property
    def summary(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Result)


def ended(result: R, as_json: bool, show: Callable[[R], None], **more: Any) -> int:
    """Say how a run ended; the exit code: 0, or 130 after Ctrl-C with a checkpoint. `more` goes into the JSON."""
    if as_json:
        found = {"folder": str(result.folder), "interrupted": result.interrupted, **more, **result.summary}
        console.print_json(found, indent=None)
    elif result.interrupted:
        print(f"stopped at step {result.step}; the same command, without --restart, goes on from there")
    else:
        show(result)
    return 130 if result.interrupted else 0


def next_steps(folder: Path, report: str, *commands: Sequence[str | Path]) -> None:
    """The report, and commands to go on with, as they can be pasted into a shell; `hgrn2` is put before each."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "hgrn2" else "hgrn2"
    lines = [f"  {folder / 'report.html'}   {report}, for a browser"]
    lines += ["  " + " ".join(quote(str(word)) for word in (program, *command)) for command in commands]
    console.show("\n".join(["\nNext:", *lines, ""]))


def own_prompt(text: str) -> str:
    """The beginning of a text of one's own as a prompt: of its first line with letters, whole words where it has some.

    An empty one where the text has no line that a shell command can hold.
    """
    for line in text.splitlines():
        line = line.strip().lstrip("- ")
        if not any(c.isalnum() for c in line) or not line.isprintable():
            continue
        if len(line) <= PROMPT:
            return line
        return line[: PROMPT + 1].rpartition(" ")[0].strip() or line[:PROMPT]
    return ""


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that the run wrote down."""
    values = read_json(folder / "config.json")
    return values if isinstance(values, dict) else {}
