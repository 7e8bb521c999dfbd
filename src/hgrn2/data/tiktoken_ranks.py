"""Encodings of the library tiktoken (`pip install hgrn2[tiktoken]`): a `.tiktoken` file of tokens and their ranks, the
pattern that text is split by, and special tokens.

The two last stand in a JSON file beside it, `NAME.json` for `NAME.tiktoken`:

    {"pattern": "\\\\p{L}+|\\\\s+|.", "special_tokens": {"<|endoftext|>": 1000}}

A file named as one of the library's own encodings, such as cl100k_base.tiktoken, needs none: the library knows them.
"""

import base64
import hashlib
import types
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.data.parts import Cutter
from hgrn2.data.reading import COMPRESSED, open_binary, plain_name, read_text
from hgrn2.data.tokenizer_base import END_OF_DOCUMENT, Ids, Tokenizer, utf8
from hgrn2.errors import UserError
from hgrn2.files import parse_json, write_bytes
from hgrn2.settings import refuse

ENDING = ".tiktoken"
PREFIX = "tiktoken:"
FILE = "tokenizer.tiktoken"
LIMIT = 1 << 27  # bytes of a file of ranks; 200,000 tokens have 3.6 MB
LARGEST = 1 << 24  # id


class TiktokenTokenizer(Tokenizer):
    """A byte-level vocabulary of tiktoken. Special tokens that are spelt out in a text are ordinary characters."""

    kind = "tiktoken"

    def __init__(self, ranks: dict[bytes, int], pattern: str, special: dict[str, int], where: str = FILE) -> None:
        """`where` is the name of the file in errors.

        Raises:
            UserError: tokens without one for each byte, ids that occur twice or do not fit, a pattern that is none.
        """
        _check(ranks, special, where)
        self._ranks, self._pattern, self._special, self._where = ranks, pattern, special, where
        self._library = _make_library(ranks, pattern, special, where)
        self.vocab_size = max(*ranks.values(), *special.values()) + 1
        self.eot = next((special[name] for name in END_OF_DOCUMENT if name in special), None)

    def __reduce__(self) -> Any:
        return TiktokenTokenizer, (self._ranks, self._pattern, self._special, self._where)

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        utf8(text)
        try:
            return np.asarray(self._library.encode_ordinary(text), dtype=np.int32)
        except BaseException as error:
            # The library panics, which is no `Exception`, where its pattern takes too long over a text.
            if type(error).__name__ != "PanicException":
                raise
            raise UserError(f"{self._where}: the pattern cannot split this text") from None

    def cut(self, text: str, limit: int, before: int = 0) -> int | None:
        return self._cutter.cut(text, limit, before)

    def decode_bytes(self, ids: Ids, *, continues: bool = False) -> bytes:
        table = self._table
        return b"".join(table[index] for index in self.check_ids(ids).tolist())

    def bytes_per(self, ids: Ids, *, continues: bool = False) -> int:
        return int(self._lengths[self.check_ids(ids)].sum())

    def _decides(self) -> Any:
        ranks = hashlib.sha256(self._file()).hexdigest()
        return {"kind": self.kind, "pattern": self._pattern, "special_tokens": self._special, "ranks": ranks}

    def _payload(self) -> dict[str, Any]:
        return {"pattern": self._pattern, "special_tokens": self._special}

    def write_files(self, folder: Path) -> None:
        write_bytes(folder / FILE, self._file())
        super().write_files(folder)

    def _file(self) -> bytes:
        """The ranks in the library's format, in their order."""
        rising = sorted(self._ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in rising)

    @cached_property
    def _table(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        for token, rank in self._ranks.items():
            table[rank] = token
        return table

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(token) for token in self._table], dtype=np.int64)

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(lambda texts: [self.encode(text).tolist() for text in texts], self._apart)

    def _apart(self, left: str, right: str) -> bool:
        """Whether no token holds the bytes on both sides next to each other."""
        return left.encode()[-1:] + right.encode()[:1] not in self._pairs

    @cached_property
    def _pairs(self) -> set[bytes]:
        return {token[n : n + 2] for token in self._ranks for n in range(len(token) - 1)}


def _check(ranks: dict[bytes, int], special: dict[str, int], where: str) -> None:
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    refuse(missing is not None, f"{where} has no token for byte {missing}; every byte needs one")
    ids = [*ranks.values(), *special.values()]
    fits = all(type(index) is int and 0 <= index < LARGEST for index in ids)
    refuse(not fits, f"{where}: ids must be whole numbers in [0, {LARGEST:,})")
    refuse(len(set(ids)) != len(ids), f"{where}: an id stands for two tokens, special ones among them")


def _make_library(ranks: dict[bytes, int], pattern: str, special: dict[str, int], where: str) -> Any:
    try:
        import tiktoken
    except ImportError:
        raise UserError(f"reading {where} needs the tiktoken library: pip install hgrn2[tiktoken]") from None
    try:
        return tiktoken.Encoding(where, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except Exception as error:
        raise UserError(f"{where}: the pattern cannot be used: {' '.join(str(error).split())[:200]}") from None


def load_tiktoken(path: Path) -> TiktokenTokenizer:
    """A `.tiktoken` file with its pattern and special tokens."""
    with open_binary(path) as opened:
        data = opened.stream.read(LIMIT + 1)
    refuse(len(data) > LIMIT, f"{path} holds more than {LIMIT:,} bytes; that is no tokenizer file")
    name = plain_name(path).removesuffix(ENDING)
    for suffix in ("", *COMPRESSED):
        beside = path.with_name(f"{name}.json{suffix}")
        if beside.is_file():
            values = parse_json(read_text(beside, LIMIT), str(beside), dict)
            return _from_values(_parse(data, path), values, str(beside), str(path))
    known = _known(name, path)
    refuse(
        known is None,
        f"{path} needs {path.with_name(name + '.json')} beside it, with its pattern and special_tokens, or the name of "
        "an encoding of tiktoken, such as cl100k_base.tiktoken",
    )
    assert known is not None

    def loaded(_: str, expected_hash: str | None = None) -> dict[bytes, int]:
        other = expected_hash is not None and hashlib.sha256(data).hexdigest() != expected_hash
        refuse(other, f"{path} is not tiktoken's {name}: its checksum differs; put {name}.json beside one of your own")
        return _parse(data, path)

    # The library keeps pattern and special tokens inside the function that downloads the file: it is given this one.
    made = types.FunctionType(known.__code__, {**known.__globals__, "load_tiktoken_bpe": loaded}, name)()
    return TiktokenTokenizer(made["mergeable_ranks"], made["pat_str"], made["special_tokens"], str(path))


def load_saved(folder: Path, saved: dict[str, Any]) -> TiktokenTokenizer:
    """What `TiktokenTokenizer.save` wrote; `saved` is the JSON of it."""
    path = folder / FILE
    with open_binary(path) as opened:
        data = opened.stream.read(LIMIT + 1)
    return _from_values(_parse(data, path), saved, str(folder), str(path))


def load_named(spec: str) -> TiktokenTokenizer:
    """`tiktoken:NAME`: an encoding of the library, which downloads it at its first use."""
    name = spec.removeprefix(PREFIX)
    try:
        import tiktoken
    except ImportError:
        raise UserError(f"tokenizer {spec} needs the tiktoken library: pip install hgrn2[tiktoken]") from None
    names = tiktoken.list_encoding_names()
    refuse(name not in names, f"tokenizer {spec}: tiktoken knows {', '.join(names)}")
    try:
        found = tiktoken.get_encoding(name)
    except Exception as error:  # of the network
        what = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer {spec} cannot be downloaded: {what}; give its .tiktoken file instead") from None
    return TiktokenTokenizer(found._mergeable_ranks, found._pat_str, found._special_tokens, spec)


def _known(name: str, path: Path) -> Callable[[], dict[str, Any]] | None:
    try:
        from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS
    except ImportError:
        raise UserError(f"reading {path} needs the tiktoken library: pip install hgrn2[tiktoken]") from None
    found = ENCODING_CONSTRUCTORS.get(name)
    return found if isinstance(found, types.FunctionType) else None


def _from_values(ranks: dict[bytes, int], values: dict[str, Any], where: str, path: str) -> TiktokenTokenizer:
    pattern, special = values.get("pattern"), values.get("special_tokens", {})
    refuse(not isinstance(pattern, str) or not pattern, f"{where} lacks the pattern that text is split by")
    refuse(not isinstance(special, dict), f"{where}: special_tokens must be an object from token to id")
    assert isinstance(pattern, str)
    return TiktokenTokenizer(ranks, pattern, special, path)


def _parse(data: bytes, path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        token, _, rank = line.strip().partition(b" ")
        try:
            refuse(not rank.isdigit() or len(rank) > 9, "")
            found = base64.b64decode(token, validate=True)
            refuse(not found or found in ranks, "")
        except (UserError, ValueError):
            message = f"{path}:{number}: not a token in base64, a space and its rank, once each"
            raise UserError(message) from None
        ranks[found] = int(rank)
    return ranks
