"""Ids to text while they come: whole characters only, and a stop text that never shows, not even in part."""

import codecs
from collections.abc import Sequence
from typing import Literal

from hgrn2.data.tokenizer import Tokenizer

Finished = Literal["stop", "eot", "length"]
CONTEXT = 8  # ids before a new one that its text may depend on: spaces and joined pieces reach back by one or two


class TextStream:
    """The text of ids one by one. Bytes are held until they make a character; what never does becomes U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), pending: bytes = b"") -> None:
        """`before`: the ids that come first and whose text is known already; the last few are enough. `pending`: what
        another stream held of a character when the text was left there."""
        self._tokenizer = tokenizer
        self._context = [int(index) for index in before[-CONTEXT:]]
        self._continues = bool(self._context)
        self._known = len(self._decoded())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(pending)

    @property
    def pending(self) -> bytes:
        """The bytes held of a character that is not whole yet, at most three."""
        return self._decoder.getstate()[0]

    def push(self, index: int) -> str:
        """The characters that this id completes."""
        # Decoded with what stands before it: some vocabularies join tokens by rules over neighbours.
        self._context.append(index)
        fresh = self._decoded()[self._known :]
        if len(self._context) > CONTEXT:
            del self._context[:-CONTEXT]
            self._continues = True
        self._known = len(self._decoded())
        return self._decoder.decode(fresh)

    def _decoded(self) -> bytes:
        return self._tokenizer.decode_bytes(self._context, continues=self._continues)

    def finish(self) -> str:
        """What the bytes still held decode to: nothing, or U+FFFD for the beginning of a character."""
        return self._decoder.decode(b"", final=True)


class StopFinder:
    """Passes text on up to the first stop text, however it is cut into pieces.

    The first stop text is the one that is complete first, reading character by character; of several that are complete
    at the same character, the longest. Held back is only what may still become one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that can be shown, whether a stop text was found: then nothing may follow)."""
        self._held += text
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)[1]], ""
            return shown, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """What was held back and is no stop text after all."""
        shown, self._held = self._held, ""
        return shown


class Writing:
    """A text while it grows, token by token: what of it can be shown, and where it ends."""

    def __init__(self, stream: TextStream, stops: Sequence[str], *, eot: int | None, max_tokens: int) -> None:
        """`eot`: the token that ends it, or None; `max_tokens`: it ends after so many in any case."""
        self.stream, self.count = stream, 0
        self._stops, self._eot, self._max_tokens = StopFinder(stops), eot, max_tokens

    def take(self, token: int) -> tuple[str, Finished | None]:
        """Add a token: (text that can be shown, why it ends)."""
        self.count += 1
        ended = token == self._eot
        text, stopped = ("", False) if ended else self._stops.push(self.stream.push(token))
        if stopped:
            return text, "stop"
        if not ended and self.count < self._max_tokens:
            return text, None
        if not ended:  # the text can be gone on with: a character that has only begun is left for what comes
            return text + self._stops.finish(), "length"
        rest, stopped = self._stops.push(self.stream.finish())
        if stopped:
            return text + rest, "stop"
        return text + rest + self._stops.finish(), "eot"

    def cut(self) -> str:
        """The text that was held back, where it ends here for another reason."""
        return self._stops.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that a stop text begins with, the whole stop text excluded."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
