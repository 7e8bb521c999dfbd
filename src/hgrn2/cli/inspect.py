"""`hgrn2 inspect`: what a model's gates and states do on a text, as a table, figures and a page."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2 import console
from hgrn2.settings import refuse

if TYPE_CHECKING:
    import numpy as np

    from hgrn2.data.tokenizer import Tokenizer
    from hgrn2.generate.loading import Loaded
    from hgrn2.inspect.measure import Inspection

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What a language model's forget gates and states do on a text: memory lengths by layer and head, what states hold,
    and of which earlier tokens an output is made.

    A table is printed; figures, a self-contained page and the numbers as JSON go into a folder. Without a text it reads
    the beginning of the held-out text of the run.

    Example: hgrn2 inspect runs/demo --text "ROMEO: I dreamt a dream to-night."
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_OR_MODEL")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    text: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(optional)")] = None
    """The text to read."""
    file: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """A text file to read; - reads standard input."""
    other: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(optional)")] = None
    """A second text: how far the states after the two are apart."""
    token: int = -1
    """Whose output is taken apart, from 0; -1 is the last one of the text."""
    limit_tokens: int = 512
    """Only the first N tokens of the text."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: RUN/inspect)")] = None
    """The folder to write."""
    overwrite: Flag = False
    """Let the folder replace one that is there."""
    json: Flag = False
    """Print the numbers as JSON."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""

    def run(self) -> None:
        refuse(self.text is not None and self.file is not None, "give --text or --file, not both")
        refuse(self.limit_tokens < 1, f"--limit-tokens is {self.limit_tokens}; it must be at least 1")
        out = self.model / "inspect" if self.out is None else self.out
        blocked = out.exists() and not self.overwrite
        refuse(blocked, f"{out} already exists; add --overwrite to replace it, or give another --out")
        from hgrn2.generate.loading import load
        from hgrn2.inspect.write import FIGURES, PAGE, write

        loaded = load(self.model, self.device, warn=lambda message: print(f"warning: {message}", file=sys.stderr))
        tokenizer = loaded.need_tokenizer()
        ids = self._ids(loaded)
        others = None if self.other is None else tokenizer.encode(self.other)[: self.limit_tokens]
        found = _measured(loaded, ids, self.token, others)
        other = None if others is None else tokenizer.decode(others)
        figures = write(
            out, found, model=loaded.name, text=tokenizer.decode(ids), other=other, overwrite=self.overwrite
        )
        if self.json:
            return console.print_json({"model": loaded.name, "folder": str(out), **found.as_json()})
        _print(found, loaded.name)
        drawn = f", {len(figures)} figures in {out / FIGURES}" if figures else " (figures need hgrn2[plot])"
        console.show(f"{out / PAGE}{drawn}")

    def _ids(self, loaded: "Loaded") -> "np.ndarray":
        if self.text is not None:
            return loaded.need_tokenizer().encode(self.text)[: self.limit_tokens]
        if self.file is not None:
            from hgrn2.cli.generate import read_text

            return loaded.need_tokenizer().encode(read_text(self.file, "unix"))[: self.limit_tokens]
        from hgrn2.cli.eval_options import EvalOptions

        corpus = EvalOptions(model=self.model).corpus(loaded, "--text or --file")
        return corpus.read(0, min(self.limit_tokens, corpus.n_tokens))


def _measured(loaded: "Loaded", ids: "np.ndarray", token: int, other: "np.ndarray | None") -> "Inspection":
    from hgrn2.inspect import trace
    from hgrn2.inspect.measure import measure

    tokenizer = loaded.need_tokenizer()
    compared = None if other is None else trace(loaded.model, other.tolist())
    return measure(trace(loaded.model, ids.tolist()), _names(tokenizer, ids), token, compared)


def _names(tokenizer: "Tokenizer", ids: "np.ndarray") -> list[str]:
    from hgrn2.inspect.measure import visible

    return [visible(tokenizer.decode([one], continues=True)) for one in ids.tolist()]


def _print(found: "Inspection", name: str) -> None:
    from hgrn2.inspect.write import HEAD, MEANING, rows

    nats = "" if found.nats is None else f", {found.nats:.3f} nats/token"
    title = f"{name}: {found.tokens:,} tokens{nats}"
    console.show(title, console.Columns(HEAD, rows(found), text=(1,)), MEANING)
    if found.left_out:
        left = ", ".join(f"{layer} ({kind})" for layer, kind in found.left_out.items())
        console.show(f"left out, as their mixers have no forget gates: layers {left}")
    if found.difference:
        apart = [f"{one.layer}: {one.distance.mean():.2f}" for one in found.difference]
        console.show(f"distance of the two states by layer, 0 to √2: {', '.join(apart)}")
