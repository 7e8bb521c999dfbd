"""Long documents in parts whose ids, laid end to end, are those of the whole document."""

from collections.abc import Iterator
from typing import NamedTuple

from hgrn2.data.splitting import Piece
from hgrn2.data.tokenizer import Tokenizer

PART = 1 << 17  # characters in one part, as a rule: several of a document are tokenised side by side
AHEAD = 1 << 11  # characters after a cut that the tokenizer may want to see


class Part(NamedTuple):
    """A part of a document; the text is never empty."""

    text: str
    continues: bool
    """Another part of the document stands before it."""
    ends: bool
    """The document ends with it."""


def recut(pieces: Iterator[Piece], tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Part]:
    """The pieces of documents, cut anew where the tokenizer allows it (`Tokenizer.cut`).

    Parts have up to `limit` characters (`PART`). Where no cut is found, the part grows until there is one.
    """
    limit = PART if limit is None else limit
    held, tried, continues = "", 0, False
    for piece in pieces:
        held += piece.text
        begin, size = 0, len(held)
        while size - begin > limit + (0 if piece.ends else AHEAD):
            # The window of text that is sure to hold the cut; a copy of little more than a part.
            text = held[begin : begin + max(limit, tried + limit) + AHEAD]
            end = min(max(limit, tried + limit), len(text) - (1 if piece.ends else AHEAD))
            if end <= tried:
                break
            place = tokenizer.cut(text, end, tried)
            if place is None:
                tried = end
                continue
            yield Part(text[:place], continues, False)
            begin, tried, continues = begin + place, 0, True
        held = held[begin:]
        if piece.ends:
            yield Part(held, continues, True)
            held, tried, continues = "", 0, False
