"""What every tokenizer is: text to token ids and back, an identity, and files in a folder."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hgrn2.errors import UserError
from hgrn2.files import atomic_folder, write_json
from hgrn2.settings import refuse

SAVED_NAME = "hgrn2_tokenizer.json"
SAVED_FORMAT = 1
END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end|>")

Ids = Sequence[int] | np.ndarray


class Tokenizer(ABC):
    """Text to ids in [0, vocab_size) and back.

    `eot` is the id that ends a document, or None where the vocabulary has none. It stands for no text, as every
    special token does: it decodes to nothing and counts no bytes.
    """

    kind: ClassVar[str]
    vocab_size: int
    eot: int | None

    @abstractmethod
    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        """The ids of a text, int32 [n]; no separator is added. Text outside the vocabulary is a `UserError`.

        `continues`: the text goes on where another ended. Its ids after the other's stand for the joined text, no
        character more or less; they are those of the joined text unless a token reaches over the seam (see `cut`).
        """

    def encode_documents(self, texts: list[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        """The ids of several texts, each as by `encode`; kinds that can do so work on them in parallel."""
        return [
            self.encode(text, continues=goes_on)
            for text, goes_on in zip(texts, continues or [False] * len(texts), strict=True)
        ]

    def cut(self, text: str, limit: int, before: int = 0) -> int | None:
        """The last place p in (before, limit] at which encoding text[:p] and text[p:] by themselves, the second as one
        that continues, gives the ids of the whole; None where none is found. `limit` lies inside the text."""
        return limit

    @abstractmethod
    def decode_bytes(self, ids: Ids, *, continues: bool = False) -> bytes:
        """The UTF-8 bytes of ids; the bytes of a part of a sequence may end inside a character (for streaming).

        `continues`: other ids stand before these, so that no text begins with the first of them. Bytes of parts laid
        end to end are those of the whole.
        """

    def decode(self, ids: Ids, *, continues: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. An id outside the vocabulary is a `UserError`."""
        return self.decode_bytes(ids, continues=continues).decode("utf-8", errors="replace")

    def bytes_per(self, ids: Ids, *, continues: bool = False) -> int:
        """How many UTF-8 bytes of text the ids stand for, as bits per byte needs."""
        return len(self.decode_bytes(ids, continues=continues))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of all that decides how text is encoded."""
        return digest(self._decides())

    @abstractmethod
    def _decides(self) -> Any:
        """All that decides how text is encoded, as JSON."""

    def identity(self) -> dict[str, Any]:
        """Which tokenizer this is: kind, vocab_size, eot and sha256. Equal identities encode alike."""
        return {"kind": self.kind, "vocab_size": self.vocab_size, "eot": self.eot, "sha256": self.sha256}

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a folder that needs no other file; a new folder is whole or absent."""
        folder = Path(folder)
        if folder.exists():
            self.write_files(folder)
        else:
            with atomic_folder(folder) as temporary:
                self.write_files(temporary)

    def write_files(self, folder: Path) -> None:
        """Write the files of `save` into a folder that is there; the one that makes it a tokenizer comes last."""
        write_json(folder / SAVED_NAME, {"format": SAVED_FORMAT, **self.identity(), **self._payload()})

    def _payload(self) -> dict[str, Any]:
        """What `save` writes beside the identity."""
        return {}

    def check_ids(self, ids: Ids) -> np.ndarray:
        """The ids as int64 [n]; one outside the vocabulary is a `UserError` that names it and its place."""
        array = np.asarray(ids).reshape(-1)
        if array.size == 0:
            return np.zeros(0, dtype=np.int64)
        refuse(array.dtype.kind not in "iu", f"token ids must be whole numbers, not {array.dtype}")
        wrong = (array < 0) | (array >= self.vocab_size)
        if wrong.any():
            place = int(wrong.argmax())
            raise UserError(
                f"token id {int(array[place])} at position {place} is outside this vocabulary of {self.vocab_size:,}"
            )
        return array.astype(np.int64)


def library_threads() -> int:
    """Threads that a library may encode with: one where the variable TOKENIZERS_PARALLELISM says so, which every
    library here heeds."""
    off = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("0", "false", "off", "no")
    return 1 if off else os.cpu_count() or 1


def utf8(text: str) -> bytes:
    """UTF-8 of a text; a lone surrogate, which no UTF-8 can hold, is a `UserError`."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text holds half a surrogate pair at position {error.start}; it is not Unicode") from None


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the spaces of its file were."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
