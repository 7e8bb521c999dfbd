"""Text to token ids and back: bytes and characters here; `load_tokenizer` finds every kind by its spec.

A tokenizer is a value: `identity()` says which one it is, `save` writes it into a folder as JSON, and `load_tokenizer`
of that folder gives an equal one. Whatever stands in a text is text: the spelling of a special token inside a document
is encoded as ordinary characters, so no input can forge a document boundary.

Some vocabularies write a space before every text, so that its first word looks like any other. A text in parts is such
a text once: `continues` says that a part goes on after another, and is then encoded and decoded without that space.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.reading import open_binary, plain_name
from hgrn2.data.sentencepiece_model import FILE as MODEL_FILE
from hgrn2.data.sentencepiece_model import SentencePieceTokenizer
from hgrn2.data.tiktoken_ranks import ENDING, PREFIX, TiktokenTokenizer, load_named, load_saved, load_tiktoken
from hgrn2.data.tokenizer_base import SAVED_FORMAT, SAVED_NAME, Ids, Tokenizer, utf8
from hgrn2.data.vocabulary import LIMIT, JsonTokenizer, load_vocabulary
from hgrn2.errors import UserError
from hgrn2.files import atomic_folder, read_json
from hgrn2.settings import refuse


class ByteTokenizer(Tokenizer):
    """One id a UTF-8 byte, and 256 between documents: any text, no vocabulary file."""

    kind = "bytes"
    vocab_size = 257
    eot = 256

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int32)

    def decode_bytes(self, ids: Ids, *, continues: bool = False) -> bytes:
        array = self.check_ids(ids)
        return array[array < 256].astype(np.uint8).tobytes()

    def bytes_per(self, ids: Ids, *, continues: bool = False) -> int:
        return int((self.check_ids(ids) < 256).sum())

    def _decides(self) -> Any:
        return {"kind": self.kind, "eot": self.eot}


class CharTokenizer(Tokenizer):
    """One id a character, numbered in code point order over the characters of the text it was built from."""

    kind = "chars"
    eot = None

    def __init__(self, characters: Iterable[str]) -> None:
        """`characters` in any order, repeats allowed; none at all is a `UserError`."""
        self.characters = "".join(sorted(set(characters)))
        refuse(not self.characters, "a character tokenizer needs a text with at least one character")
        self.vocab_size = len(self.characters)
        self._points = _code_points(self.characters)
        self._bytes = np.array([len(character.encode()) for character in self.characters])

    @classmethod
    def from_text(cls, text: str | Iterable[str]) -> "CharTokenizer":
        """The characters that occur in a text, or in several."""
        seen: set[str] = set()
        for part in (text,) if isinstance(text, str) else text:
            seen.update(part)
        return cls(seen)

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        points = _code_points(text)
        ids = np.minimum(np.searchsorted(self._points, points), self.vocab_size - 1)
        unknown = self._points[ids] != points
        if unknown.any():
            place = int(unknown.argmax())
            raise UserError(
                f"character {text[place]!r} (U+{ord(text[place]):04X}) at position {place} "
                f"is not among the {self.vocab_size} characters of this tokenizer"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Ids, *, continues: bool = False) -> str:
        return self._points[self.check_ids(ids)].astype("<u4").tobytes().decode("utf-32-le")

    def decode_bytes(self, ids: Ids, *, continues: bool = False) -> bytes:
        return self.decode(ids).encode()

    def bytes_per(self, ids: Ids, *, continues: bool = False) -> int:
        return int(self._bytes[self.check_ids(ids)].sum())

    def _decides(self) -> Any:
        return {"kind": self.kind, "characters": self.characters}

    def _payload(self) -> dict[str, Any]:
        return {"characters": self.characters}


def _code_points(text: str) -> np.ndarray:
    try:
        return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    except UnicodeEncodeError as error:
        raise UserError(f"the text holds half a surrogate pair at position {error.start}; it is not Unicode") from None


def load_tokenizer(spec: str | Path, *, text: str | Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer that a spec names.

    `bytes`; `chars` (built from `text`); the path of a `tokenizer.json`; a file or the folder of GPT-2-style files
    (`vocab.bpe` with `encoder.json`, or `merges.txt` with `vocab.json`, with or without a prefix as in
    `gpt2-vocab.bpe`); a SentencePiece `.model`; a `.tiktoken` file (`hgrn2.data.tiktoken_ranks` says what stands beside
    it), or `tiktoken:NAME` for an encoding that tiktoken downloads; a folder written by `save`, or one that holds it
    under `tokenizer/` (a prepared corpus). Vocabulary files may be compressed (.xz, .gz, .zst). What cannot be found or
    read is a `UserError`.
    """
    if str(spec) == ByteTokenizer.kind:
        return ByteTokenizer()
    if str(spec) == CharTokenizer.kind:
        if text is None:
            raise UserError("tokenizer 'chars' is built from a text, and none is given here; give a saved one's folder")
        return CharTokenizer.from_text(text)
    if str(spec).startswith(PREFIX):
        return load_named(str(spec))
    path = Path(spec)
    refuse(not path.exists(), f"tokenizer {spec}: write bytes, chars, or the path of a vocabulary; this does not exist")
    for saved in (path / SAVED_NAME, path / "tokenizer" / SAVED_NAME):
        if saved.is_file():
            return _load_saved(saved)
    if path.name == SAVED_NAME:
        return _load_saved(path)
    if path.is_dir() and (path / MODEL_FILE).is_file() and not (path / "tokenizer.json").is_file():
        path = path / MODEL_FILE
    if plain_name(path).endswith(".model"):
        return _load_model(path)
    return load_tiktoken(path) if plain_name(path).endswith(ENDING) else load_vocabulary(path)


def _load_model(path: Path) -> SentencePieceTokenizer:
    with open_binary(path) as opened:
        data = opened.stream.read(LIMIT + 1)
    refuse(len(data) > LIMIT, f"{path} holds more than {LIMIT:,} bytes; that is no tokenizer file")
    return SentencePieceTokenizer(data, str(path))


def save_once(tokenizer: Tokenizer, folder: Path) -> None:
    """Have a tokenizer in a folder that belongs to it alone: what is whole stays, what is not is replaced.

    Raises:
        UserError: the folder holds another tokenizer.
    """
    try:
        held = load_tokenizer(folder) if folder.exists() else None
    except UserError:  # cut off by a crash, or damaged
        held = None
    if held is None:
        with atomic_folder(folder, replace=True) as temporary:
            tokenizer.write_files(temporary)
        return
    other = held.identity() != tokenizer.identity()
    refuse(other, f"{folder} is another tokenizer than that of the data; use another --out or --restart")


def _load_saved(path: Path) -> Tokenizer:
    """What `Tokenizer.save` wrote; refused where it is not what its own identity says."""
    saved = read_json(path, dict)
    refuse(not isinstance(saved.get("kind"), str), f"{path} is not a saved tokenizer")
    refuse(saved.get("format") != SAVED_FORMAT, f"{path} has format {saved.get('format')}; this reads {SAVED_FORMAT}")
    if saved["kind"] == ByteTokenizer.kind:
        tokenizer: Tokenizer = ByteTokenizer()
    elif saved["kind"] == CharTokenizer.kind:
        refuse(not isinstance(saved.get("characters"), str), f"{path} lacks its characters")
        tokenizer = CharTokenizer(saved["characters"])
    elif saved["kind"] == SentencePieceTokenizer.kind:
        tokenizer = _load_model(path.with_name(MODEL_FILE))
    elif saved["kind"] == TiktokenTokenizer.kind:
        tokenizer = load_saved(path.parent, saved)
    else:
        refuse(saved["kind"] != JsonTokenizer.kind, f"{path} is of an unknown kind {saved['kind']!r}")
        tokenizer = load_vocabulary(path.with_name("tokenizer.json"))
    stated = {key: saved.get(key) for key in tokenizer.identity()}
    refuse(stated != tokenizer.identity(), f"{path}: the tokenizer is not the one that was saved (checksum differs)")
    return tokenizer
