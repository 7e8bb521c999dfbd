"""Saved states in a folder, one file each, under ids that this program makes: no name from outside becomes a path."""

import logging
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.files import clean
from hgrn2.generate.snapshots import (
    OtherOrigin,
    Snapshot,
    describe_snapshot,
    load_snapshot,
    origin_of,
    save_snapshot,
)
from hgrn2.models.language import LanguageModel
from hgrn2.serve.errors import ApiError

ID = re.compile(r"st-[0-9a-f]{16}")
SUFFIX = ".safetensors"
NAME = 100  # characters of a state's name at most
log = logging.getLogger("hgrn2.serve")


@dataclass(frozen=True)
class Saved:
    """A state in the folder."""

    id: str
    name: str
    created: int
    """Seconds since 1970."""
    tokens: int
    bytes: int
    parent: str | None
    model_hash: str
    tokenizer_hash: str
    dtype: str
    owner: str
    usable: bool
    """Whether it is one of this server's model and tokenizer."""

    def shown(self, model: str) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "id": self.id, "object": "state", "name": self.name, "created": self.created, "tokens": self.tokens,
            "bytes": self.bytes, "parent": self.parent, "model": model if self.usable else None,
            "model_hash": self.model_hash, "tokenizer_hash": self.tokenizer_hash, "dtype": self.dtype,
            "usable": self.usable,
        }  # fmt: skip


class StateStore:
    """States on disk; every owner sees their own. Called from any thread."""

    def __init__(
        self, folder: Path, model: LanguageModel, tokenizer: Tokenizer, *, max_states: int, max_bytes: int,
        int8: bool = False,
    ) -> None:  # fmt: skip
        """Look at what is in the folder, which is made where it is missing; files that are no states are left alone."""
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.max_states, self.max_bytes, self.int8 = max_states, max_bytes, int8
        self.origin = origin_of(model, tokenizer)
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        self._known: dict[str, Saved] = {}
        for path in sorted(folder.glob(f"st-*{SUFFIX}")):
            if ID.fullmatch(path.name.removesuffix(SUFFIX)):
                try:
                    saved = self._look(path)
                except UserError as error:
                    log.warning("%s", error)
                else:
                    self._known[saved.id] = saved

    def all(self, owner: str) -> list[Saved]:
        """An owner's states, newest first."""
        with self._lock:
            found = [saved for saved in self._known.values() if saved.owner == owner]
        return sorted(found, key=lambda saved: (-saved.created, saved.id))

    def get(self, key: str, owner: str) -> Saved:
        """A state of an owner; others' are as if they were not there."""
        with self._lock:
            saved = self._known.get(key)
        if saved is None or saved.owner != owner:
            raise ApiError(404, f"there is no state {key!r}", param="state", code="state_not_found")
        return saved

    def add(self, snapshot: Snapshot, owner: str, *, name: str = "", parent: str | None = None) -> Saved:
        """Save a state under a new id."""
        self._check(name, snapshot.state.nbytes)
        key = f"st-{secrets.token_hex(8)}"
        notes = {"name": name, "created": str(int(time.time())), "parent": parent or "", "owner": owner}
        try:
            save_snapshot(
                self._path(key), snapshot, self.model, self.tokenizer, origin=self.origin, notes=notes, int8=self.int8
            )
            saved = self._look(self._path(key))
        except UserError as error:  # a full disk
            log.error("%s", error)
            raise ApiError(503, "the state could not be saved: its folder cannot be written", code="storage") from None
        with self._lock:
            self._known[key] = saved
        return saved

    def load(self, key: str, owner: str) -> Snapshot:
        """Where a state stands."""
        self.get(key, owner)
        with _stored(key):
            return load_snapshot(self._path(key), self.model, self.tokenizer, origin=self.origin)

    def fork(self, key: str, owner: str, name: str = "") -> Saved:
        """A copy under a new id."""
        return self.add(self.load(key, owner), owner, name=name, parent=key)

    def file(self, key: str, owner: str) -> Path:
        """Where a state's file is."""
        self.get(key, owner)
        return self._path(key)

    def upload(self, data: bytes, owner: str, name: str = "") -> Saved:
        """Save a state from the bytes of a file; what is stored is written anew from what was read and checked."""
        self._check(name, len(data))
        with tempfile.TemporaryDirectory(prefix="hgrn2-upload-") as place:
            path = Path(place) / f"upload{SUFFIX}"
            path.write_bytes(data)
            with _stored("the file"):
                snapshot = load_snapshot(path, self.model, self.tokenizer, origin=self.origin)
        return self.add(snapshot, owner, name=name)

    def delete(self, key: str, owner: str) -> None:
        """Remove a state."""
        self.get(key, owner)
        with self._lock:
            self._known.pop(key, None)
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert ID.fullmatch(key)  # it is a key of `_known`, or was just made
        return self.folder / f"{key}{SUFFIX}"

    def _check(self, name: str, size: int) -> None:
        if len(name) > NAME or not name.isprintable():
            raise ApiError(400, f"name must be at most {NAME} printable characters", param="name")
        with self._lock:
            count, used = len(self._known), sum(saved.bytes for saved in self._known.values())
        if count >= self.max_states or used + size > self.max_bytes:
            full = f"{count} states of {used / 1e6:,.0f} MB are saved already, which is all there is room for"
            raise ApiError(409, f"{full}; delete some first", code="states_full")

    def _look(self, path: Path) -> Saved:
        described = describe_snapshot(path)
        origin, notes = described.origin, described.notes
        created = notes.get("created", "")
        return Saved(
            id=path.name.removesuffix(SUFFIX), name=notes.get("name", ""),
            created=int(created) if created.isdecimal() and len(created) < 13 else int(path.stat().st_mtime),
            tokens=described.tokens, bytes=path.stat().st_size, parent=notes.get("parent") or None,
            owner=notes.get("owner", ""), usable=origin == self.origin, **origin._asdict(),
        )  # fmt: skip


@contextmanager
def _stored(what: str) -> Iterator[None]:
    """Errors about a file say its id, never where it lies."""
    try:
        yield
    except OtherOrigin as error:
        raise ApiError(409, f"{what} {_fault(error)}", param="state", code="other_model") from None
    except UserError as error:
        raise ApiError(400, f"{what} {_fault(error)}", param="state", code="damaged_state") from None


def _fault(error: UserError) -> str:
    """What is said after the file's name."""
    said = str(error)
    place = said.find(SUFFIX)
    return said[place + len(SUFFIX) :].strip(" :") if place >= 0 else said
