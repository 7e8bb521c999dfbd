"""`hgrn2 settings`: every name that --set takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hgrn2 import console
from hgrn2.errors import unknown

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Name every setting of a kind of run, as --set takes them: type, default, meaning.

    Kinds: lm, mqar, sequence, image, deit (of hgrn2 train), tune, and listops, pathfinder (of hgrn2 data lra).

    Example: hgrn2 settings lm
    """

    kind: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="KIND")]] = "lm"
    """Which kind of run."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Instead, write the page of all kinds as Markdown."""
    json: Flag = False
    """Print them as JSON."""

    def run(self) -> None:
        from hgrn2.cli.settings_page import KINDS, page, settings_of
        from hgrn2.files import write_text

        if self.out is not None:
            write_text(self.out, page())
            return print(f"wrote {self.out}")
        if self.kind not in KINDS:
            raise unknown("kind of run", self.kind, KINDS)
        found = settings_of(self.kind)
        if self.json:
            return console.print_json([one._asdict() for one in found])
        group = ""
        for one in found:
            above = one.name.rpartition(".")[0]
            if above != group and group:
                console.show("")
            group = above
            _print(one.name, one.type, one.default, one.meaning)


def _print(name: str, kind: str, default: str, meaning: str) -> None:
    """A setting and, indented, its meaning, as wide as the terminal."""
    from rich.padding import Padding
    from rich.text import Text

    line = Text.assemble((name, "bold"), f" = {default}" if default else " =", (f"   ({kind})", "dim"))
    console.show(line)
    if meaning:
        console.show(Padding(Text(meaning), (0, 0, 0, 4)))
