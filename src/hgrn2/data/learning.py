"""A vocabulary learned from the text itself: byte-level BPE as GPT-2's, by the `tokenizers` library."""

from collections.abc import Iterable, Iterator

from hgrn2.data.tokenizer_base import END_OF_DOCUMENT
from hgrn2.data.vocabulary import JsonTokenizer
from hgrn2.errors import UserError
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

PREFIX = "bpe:"
SMALLEST = 257  # the 256 bytes and the end of a document


def learned_size(spec: str) -> int | None:
    """The N of `bpe:N`; None for any other spec. A size that cannot be is a `UserError`."""
    if not spec.startswith(PREFIX):
        return None
    number = spec.removeprefix(PREFIX).replace("_", "")
    refuse(not (number.isascii() and number.isdigit()) or len(number) > 9, f"tokenizer {spec}: write bpe:8000 or alike")
    refuse(int(number) < SMALLEST, f"tokenizer {spec}: a byte-level vocabulary has at least {SMALLEST} ids")
    return int(number)


def learn_bpe(texts: Iterable[str], size: int, total: int = 0, progress: Progress = silent) -> JsonTokenizer:
    """A byte-level BPE of at most `size` ids, `<|endoftext|>` among them; fewer where the text gives no more merges.

    Words are split as GPT-2 splits them, and a pair must occur twice. The same texts give the same vocabulary.
    `progress` hears of "counting words" in characters, out of `total`, and then of "merging", of which no end is known.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError("learning a vocabulary needs the tokenizers library: pip install hgrn2[text]") from None
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, show_progress=False, special_tokens=[END_OF_DOCUMENT[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    library.train_from_iterator(_told(texts, total, progress), trainer)
    return JsonTokenizer(library.to_str(), "the learned vocabulary")


def _told(texts: Iterable[str], total: int, progress: Progress) -> Iterator[str]:
    done = 0
    for text in texts:
        yield text
        done += len(text)
        progress("counting words", done, total)
    progress("merging", 0, 0)
