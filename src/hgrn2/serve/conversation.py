"""A conversation as a value: what was said, and the state after it. To undo is to take the value before.

Only what is new is read. The template writes the text of the conversation as a whole each time; where it begins with
what the model has read and written already, the rest alone is read on top of the state, else all of it is read anew (a
template that rewrites earlier turns, an answer that it spells differently).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hgrn2.generate.config import GenerationConfig
from hgrn2.generate.generator import Completion, Generator, Piece
from hgrn2.generate.snapshots import Snapshot
from hgrn2.serve.templates import ChatTemplate, Message
from hgrn2.settings import refuse


@dataclass(frozen=True)
class Conversation:
    """Where a conversation stands."""

    messages: tuple[Message, ...] = ()
    """What was said since it began or was loaded, roles user and assistant."""
    written: str = ""
    """The text that the model has read and written since then."""
    snapshot: Snapshot | None = None
    """Where that text stands; None before its beginning."""
    loaded: bool = False
    """Whether it goes on from a saved state, whose text is not known."""
    reread: bool = False
    """Whether the last turn had to read the whole conversation anew."""
    before: "Conversation | None" = None
    """The value before the last turn."""

    @staticmethod
    def after(snapshot: Snapshot) -> "Conversation":
        """One that goes on from a saved state."""
        return Conversation(snapshot=snapshot, loaded=True)

    def undone(self) -> "Conversation":
        """Without its last turn; a `UserError` where there is none."""
        refuse(self.before is None, "there is no turn to undo")
        assert self.before is not None
        return self.before


class Talk:
    """Takes turns with one model."""

    def __init__(self, generator: Generator, template: ChatTemplate, config: GenerationConfig) -> None:
        """`config`: of every answer; the turn's number is added to its seed, so that a turn taken again is the same."""
        self.generator, self.template, self.config = generator, template, config

    def say(self, here: Conversation, text: str, show: Callable[[str], None]) -> Conversation:
        """The value after a message and its answer, which `show` is given piece by piece.

        Raises:
            UserError: text that the tokenizer lacks, a template that refuses it.
        """
        messages = (*here.messages, {"role": "user", "content": text})
        whole = self.template(messages)
        if here.loaded and not here.messages:
            whole = "\n" + whole
        fits = whole.startswith(here.written)
        start = here.snapshot if fits or here.loaded else None
        part = whole[len(here.written) :] if fits else whole
        answer, made = self._answer(part, start, len(messages), show)
        read = (here.written if fits else "") + part + self.generator.tokenizer.decode(made.ids, continues=True)
        said = (*messages, {"role": "assistant", "content": answer})
        return replace(
            here, messages=said, written=read, snapshot=made.snapshot, reread=not fits, before=here
        )  # fmt: skip

    def _answer(
        self, part: str, start: Snapshot | None, number: int, show: Callable[[str], None]
    ) -> tuple[str, Completion]:
        """The answer's text, and the completion that it is of."""
        seed = self.config.sampling.seed
        sampling = self.config.sampling if seed is None else replace(self.config.sampling, seed=seed + number)
        config = replace(self.config, sampling=sampling, stop=(*self.config.stop, *self.template.stops))
        pieces = self.generator.stream(part, config) if start is None else self._goes_on(part, start, config)
        text, ids = "", []
        for piece in pieces:
            shown = piece.text.removeprefix(self.template.lead) if not text else piece.text
            text += shown
            show(shown)
            if piece.token is not None:
                ids.append(piece.token)
            if piece.snapshot is not None and piece.finished is not None:
                return text, Completion(0, text, tuple(ids), piece.finished, piece.snapshot)
        raise AssertionError("a text ends with a snapshot")

    def _goes_on(self, part: str, start: Snapshot, config: GenerationConfig) -> Iterator[Piece]:
        """From a state. An end of document that the model wrote is left out: the conversation is one text."""
        if start.last != self.generator.tokenizer.eot or self.generator.tokenizer.eot is None:
            return self.generator.stream(part, config, start)
        first, *rest = self.generator.tokenizer.encode(part, continues=True).tolist()
        return self.generator.stream(rest, config, replace(start, last=first))
