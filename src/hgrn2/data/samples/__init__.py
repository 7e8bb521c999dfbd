"""The text that comes with the package, so that a first run needs no download: tinyshakespeare (see README.md)."""

import hashlib
import lzma
from importlib.resources import files
from typing import NamedTuple

from hgrn2.data.corpus import Corpus
from hgrn2.data.tokenizer import CharTokenizer, Tokenizer
from hgrn2.errors import UserError

SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_SHARE = 0.9


class Sample(NamedTuple):
    """Two parts of one text, in memory, and the tokenizer of both."""

    train: Corpus
    valid: Corpus
    tokenizer: Tokenizer


def shakespeare() -> str:
    """The whole text, 1,115,394 characters; a damaged copy is a `UserError`."""
    try:
        data = lzma.decompress((files(__name__) / "tinyshakespeare.txt.xz").read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"the embedded sample cannot be read ({error}); install hgrn2 again") from None
    if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
        raise UserError("the embedded sample is damaged (checksum differs); install hgrn2 again")
    return data.decode("utf-8")


def shakespeare_corpora(tokenizer: Tokenizer | None = None) -> Sample:
    """The usual split: the first 90% of the characters to train on, the last 10% held out.

    The default tokenizer has the 65 characters of the whole text, as published numbers on this file do.
    """
    text = shakespeare()
    tokenizer = tokenizer or CharTokenizer.from_text(text)
    cut = int(len(text) * TRAIN_SHARE)
    train = Corpus.from_text(text[:cut], tokenizer, name="shakespeare (train)")
    valid = Corpus.from_text(text[cut:], tokenizer, name="shakespeare (valid)")
    return Sample(train, valid, tokenizer)
