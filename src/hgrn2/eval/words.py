"""WikiText: perplexity by words and by tokens, of pages read one by one with the state carried through each.

The same probabilities of the same text are divided by different counts, and there are two texts:

    detokenised   the page as prose again (" @-@ " is a hyphen, no space before a comma), as lm-eval's `wikitext` task
                  reads it; counts are of the page as it stands in the file, also as there.
    verbatim      the file as it stands, `<unk>` and all, with every token of the file counted as a word and one more
                  for the end of each line: the count of the WikiText papers (245,569 for the test split of 103).

Word-perplexity is exp(nats / words) and does not depend on the tokenizer; token-perplexity is exp(nats / tokens).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hgrn2.data.reading import read_text
from hgrn2.eval.scoring import Request, score
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from hgrn2.eval.harness import HGRN2LM

LIMIT = 1 << 31
TITLE = re.compile(r"^ = [^=](?:.*[^=])? = $", re.MULTILINE)
"""The line that begins a page; sections have more signs."""


@dataclass(frozen=True)
class WordPerplexity:
    """A measurement of one of the two texts."""

    text: str
    """detokenised or verbatim."""
    pages: int
    nats: float
    """Summed -ln p of all tokens, the first of a page predicted after an end of document."""
    words: int
    tokens: int
    bytes: int
    word_perplexity: float
    token_perplexity: float
    bits_per_byte: float


def read_pages(path: Path, limit: int | None = None) -> list[str]:
    """The pages of a WikiText file, each from its title to the next; only the first `limit`."""
    refuse(limit is not None and limit < 1, f"--limit is {limit}; it must be at least 1")
    text = read_text(path, LIMIT)
    starts = [found.start() for found in TITLE.finditer(text)]
    refuse(not starts, f"{path} is not a WikiText file: it has no line like ' = Title = '")
    starts[0] = 0  # an empty line before the first title is counted, as the data set's own counts do
    return [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)][:limit]


def detokenised(lm: "HGRN2LM", pages: list[str], progress: Progress = silent) -> WordPerplexity:
    """As lm-eval's task `wikitext`: its text, its counts of words (pieces between white space) and bytes."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    words = sum(len(re.split(r"\s+", page)) for page in pages)
    prose = [wikitext_detokenizer({"page": page}) for page in pages]
    return _measure("detokenised", lm, prose, words, _bytes(pages), progress)


def verbatim(lm: "HGRN2LM", pages: list[str], progress: Progress = silent) -> WordPerplexity:
    """The file as it stands; the end of a line counts as a word."""
    words = sum(len(page.split()) + page.count("\n") for page in pages)
    return _measure("verbatim", lm, pages, words, _bytes(pages), progress)


def _bytes(pages: list[str]) -> int:
    return sum(len(page.encode()) for page in pages)


def _measure(name: str, lm: "HGRN2LM", pages: list[str], words: int, size: int, progress: Progress) -> WordPerplexity:
    requests = [Request((lm.eot_token_id,), tuple(lm.tok_encode(page))) for page in pages]
    nats = -sum(one.log_probability for one in score(lm.model, requests, batch_size=lm.batch_size, progress=progress))
    tokens = sum(len(request.continuation) for request in requests)
    return WordPerplexity(
        text=name,
        pages=len(pages),
        nats=nats,
        words=words,
        tokens=tokens,
        bytes=size,
        word_perplexity=_power(nats / words),
        token_perplexity=_power(nats / tokens),
        bits_per_byte=nats / size / math.log(2),
    )


def _power(nats: float) -> float:
    return math.exp(nats) if nats < 709 else math.inf + nats  # beyond a double's range; NaN stays NaN
