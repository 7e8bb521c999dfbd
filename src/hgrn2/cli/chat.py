"""`hgrn2 chat`: talk with a model in the terminal; every point of the conversation can be kept and returned to."""

import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2.errors import UserError, unknown
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from hgrn2.serve.conversation import Conversation, Talk

COMMANDS = {
    "/undo": "take the last turn back, exactly",
    "/fork NAME": "keep this point under a name, and go on",
    "/go NAME": "return to a point that was kept",
    "/save FILE": "write the state of this point to a file",
    "/load FILE": "go on from a file; what was said here is left",
    "/history": "what was said since the beginning or the last /load",
    "/help": "this list",
    "/quit": "end; so does the end of the input",
}


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk with a model in the terminal. Lines that begin with / are commands: /help lists them.

    Only what is new is read, however long the conversation. /undo, /fork and /go are exact, as states are values.

    Example: hgrn2 chat runs/demo --temperature 0.8
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_OR_MODEL")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    state: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """A saved state to go on from."""
    chat_template: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the tokenizer's)")
    ] = None
    """A Jinja template; where there is none, lines as `user: …` and `assistant: …`."""
    max_tokens: int = 400
    """Tokens of an answer at most."""
    temperature: float = 1.0
    """Below 1 sharper, above 1 more varied."""
    top_p: float = 1.0
    """Choose among the fewest tokens that together have this probability; 1: off."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: random)")] = None
    """The same seed and the same words give the same answers."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""

    def run(self) -> None:
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        sampling = SamplingConfig(temperature=self.temperature, top_p=self.top_p, seed=seed)
        config = GenerationConfig(max_tokens=self.max_tokens, sampling=sampling)
        from hgrn2.generate.generator import Generator
        from hgrn2.generate.loading import load
        from hgrn2.generate.snapshots import load_snapshot
        from hgrn2.serve.conversation import Conversation, Talk
        from hgrn2.serve.templates import find_template

        loaded = load(self.model, self.device, warn=_warn)
        generator = Generator(loaded.model, loaded.need_tokenizer())
        talk = Talk(generator, find_template(loaded.found.tokenizer, self.chat_template), config)
        here = Conversation()
        if self.state is not None:
            here = Conversation.after(load_snapshot(self.state, generator.model, generator.tokenizer))
        _note(f"{loaded.name}, seed {seed}; /help lists commands")
        _Session(talk, here).run()


@dataclass
class _Session:
    """Reads lines and follows them."""

    talk: "Talk"
    here: "Conversation"
    kept: dict[str, "Conversation"] = field(default_factory=dict)

    def run(self) -> None:
        """Until the input ends or /quit."""
        for line in _lines():
            if line.strip() == "/quit":
                return
            try:
                if line.startswith("/"):
                    self._command(*line.split(maxsplit=1))
                elif line.strip():
                    self._say(line)
            except UserError as error:
                _note(str(error))
            except KeyboardInterrupt:  # while an answer came
                print(flush=True)
                _note("left out: neither what was said nor its answer counts")

    def _say(self, text: str) -> None:
        self.here = self.talk.say(self.here, text, lambda piece: print(piece, end="", flush=True))
        print(flush=True)
        if self.here.reread:
            _note("the template writes earlier turns in other words: the conversation was read anew")

    def _command(self, name: str, argument: str = "") -> None:
        argument = argument.strip()
        known = {command.partition(" ")[0]: bool(command.partition(" ")[2]) for command in COMMANDS}
        if name not in known:
            raise unknown("command", name, known)
        refuse(known[name] and not argument, f"{name} needs a name: see /help")
        getattr(self, f"_{name[1:]}")(argument)

    def _undo(self, _: str) -> None:
        self.here = self.here.undone()
        _note(f"{len(self.here.messages) // 2} turns are left")

    def _fork(self, name: str) -> None:
        self.kept[name] = self.here
        _note(f"kept as {name}: /go {name} returns here")

    def _go(self, name: str) -> None:
        if name not in self.kept:
            raise unknown("point", name, self.kept)
        self.here = self.kept[name]
        _note(f"at {name}, after {len(self.here.messages) // 2} turns")

    def _save(self, name: str) -> None:
        from hgrn2.generate.snapshots import save_snapshot

        if self.here.snapshot is None:
            raise UserError("nothing was said yet: there is no state to save")
        generator = self.talk.generator
        save_snapshot(Path(name), self.here.snapshot, generator.model, generator.tokenizer)
        _note(f"saved to {name}")

    def _load(self, name: str) -> None:
        from hgrn2.generate.snapshots import load_snapshot
        from hgrn2.serve.conversation import Conversation

        generator = self.talk.generator
        self.here = Conversation.after(load_snapshot(Path(name), generator.model, generator.tokenizer))
        tokens = 0 if self.here.snapshot is None else self.here.snapshot.tokens
        _note(f"after {tokens:,} tokens of {name}")

    def _history(self, _: str) -> None:
        for message in self.here.messages:
            print(f"{message['role']}: {message['content']}", flush=True)

    def _help(self, _: str) -> None:
        for command, about in COMMANDS.items():
            _note(f"  {command:<12}{about}")


def _lines() -> Iterator[str]:
    """What is typed; a prompt is shown to people only."""
    while True:
        if sys.stdin.isatty():
            try:
                yield input("> ")
            except EOFError:
                return
        else:
            line = sys.stdin.readline()
            if not line:
                return
            yield line.rstrip("\n")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _warn(message: str) -> None:
    _note(f"warning: {message}")
