"""A text in progress as a value, and as a file: what it takes to go on exactly where it stood.

The state of a snapshot has read every token but the last, and the last token is kept beside it: predicting needs that
token's output, which a state alone does not hold. So a text can be continued with or without further prompt, and no
token is ever read twice or left out, be it the last one of the prompt or one that was just generated.

    file: safetensors with the state's tensors; metadata {format, model_hash, tokenizer_hash, tokens, last, dtype,
    batch, checksum}, and `pending` in hexadecimal where a character is unfinished. Two numbers and hashes: nothing in
    it grows with the text, and nothing of the text can be read but the bytes of such a character. Whoever saves it may
    add notes, as metadata {note.NAME}.
    Of attention the tensors hold keys and values of tokens - 1 tokens, and grow with the text.

A file in eight bits has another format, int8 tensors [n,32] in place of real ones, and their scales as {name}.scale [n]
(`compact`): about a quarter of the bytes, and a text that goes on from it is not exactly the one that would have been.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.files import atomic_path
from hgrn2.generate.compact import BLOCK, restored, rounded
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import add_tensors, model_hash, reported
from hgrn2.models.tensor_files import opened
from hgrn2.settings import refuse

FORMAT, FORMAT_INT8, NOTE = "hgrn2-state-1", "hgrn2-state-int8-1", "note."
SCALE = ".scale"
_KEYS = ("model_hash", "tokenizer_hash", "tokens", "last", "dtype", "batch", "checksum")


class OtherOrigin(UserError):
    """A state of another model or tokenizer."""


@dataclass(frozen=True)
class Snapshot:
    """Where one text stands."""

    state: ModelState
    """After every token but the last; of one sequence."""
    last: int
    """The last token, which the state has not read yet."""
    tokens: int
    """Length of the text in tokens, the last one included."""
    pending: bytes = b""
    """Of a character that the tokens so far have only begun: its first bytes, which no text shows yet."""


class Origin(NamedTuple):
    """Whose states they are."""

    model_hash: str
    tokenizer_hash: str
    dtype: str
    """Of the model's weights."""


class Described(NamedTuple):
    """What the head of a file says."""

    origin: Origin
    tokens: int
    notes: dict[str, str]


def origin_of(model: LanguageModel, tokenizer: Tokenizer) -> Origin:
    """Reads all weights: whoever saves or loads many states asks once."""
    return Origin(model_hash(model), tokenizer.sha256, _dtype(model))


def save_snapshot(
    path: str | Path,
    snapshot: Snapshot,
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    overwrite: bool = False,
    origin: Origin | None = None,
    notes: Mapping[str, str] | None = None,
    int8: bool = False,
) -> None:
    """Write a snapshot to a file that is whole or absent; a file that is there already is refused unless asked.

    `origin` is that of model and tokenizer where it is known; `notes` are kept beside the state; with `int8` numbers
    are rounded to eight bits.
    """
    path = Path(path)
    refuse(path.exists() and not overwrite, f"{path} already exists; it is not overwritten")
    refuse(snapshot.state.batch != 1, f"a snapshot holds one sequence, not {snapshot.state.batch}")
    tensors = {name: _plain(tensor) for name, tensor in snapshot.state.tensors().items()}
    tensors = _in_eight_bits(tensors) if int8 else tensors
    metadata = {
        "format": FORMAT_INT8 if int8 else FORMAT,
        **(origin or origin_of(model, tokenizer))._asdict(),
        "tokens": str(snapshot.tokens),
        "last": str(snapshot.last),
        "batch": str(snapshot.state.batch),
        **{f"{NOTE}{key}": value for key, value in (notes or {}).items()},
    }
    if snapshot.pending:
        metadata["pending"] = snapshot.pending.hex()
    metadata["checksum"] = _checksum(tensors, metadata)
    with reported(path), atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def describe_snapshot(path: Path) -> Described:
    """What a file says of itself, without reading the state; a `UserError` where it is no file of `save_snapshot`."""
    with opened(path) as file:
        metadata = _metadata(path, file)
    notes = {key.removeprefix(NOTE): value for key, value in metadata.items() if key.startswith(NOTE)}
    origin = Origin(*(metadata[key] for key in Origin._fields))
    return Described(origin, _whole(path, metadata, "tokens"), notes)


def load_snapshot(
    path: str | Path, model: LanguageModel, tokenizer: Tokenizer, *, origin: Origin | None = None
) -> Snapshot:
    """Read a snapshot of this model and tokenizer, whose `origin` may be known, onto the model's device.

    Raises:
        UserError: no such file, a damaged one, one of another format, model, dtype, tokenizer or batch.
    """
    path = Path(path)
    refuse(path.is_dir(), f"{path} is a folder, not a saved state")
    like = model.zeros(1)
    with opened(path) as file:
        metadata = _metadata(path, file)
        _check_origin(path, metadata, origin or origin_of(model, tokenizer))
        # Shapes first: a file that fits is as small as the state, and any other is not read.
        last, tokens = _whole(path, metadata, "last"), _whole(path, metadata, "tokens")
        pairs = {name: [2] if tensor.is_complex() else [] for name, tensor in like.tensors().items()}
        plain = {name: shape + pairs[name] for name, shape in like.shapes(tokens - 1).items()}
        eight = metadata["format"] == FORMAT_INT8
        wanted = _shapes_in_eight_bits(plain, like) if eight else plain
        stored = {name: file.get_slice(name).get_shape() for name in list(file.keys())}
        refuse(stored != wanted, f"{path} is damaged: its tensors are not those of this model's state")
        tensors = {name: file.get_tensor(name) for name in stored}
    refuse(_checksum(tensors, metadata) != metadata["checksum"], f"{path} is damaged: its checksum differs")
    model.check_tokens(torch.tensor([last]))
    tensors = _from_eight_bits(tensors, plain, like) if eight else tensors
    named = {name: _like(tensors[name], tensor) for name, tensor in like.tensors().items()}
    return Snapshot(ModelState.from_tensors(named, like), last, tokens, _pending(path, metadata))


def _metadata(path: Path, file: Any) -> dict[str, str]:
    metadata = file.metadata() or {}
    refuse("format" not in metadata, f"{path} is not a saved state")
    known = metadata["format"] in (FORMAT, FORMAT_INT8)
    refuse(not known, f"{path} has format {metadata['format']!r}; this program reads {FORMAT!r}")
    lacking = [key for key in _KEYS if key not in metadata]
    refuse(bool(lacking), f"{path} is damaged: it lacks {', '.join(lacking)}")
    return metadata


def _check_origin(path: Path, metadata: dict[str, str], origin: Origin) -> None:
    batch, dtype = metadata["batch"], metadata["dtype"]
    refuse(batch != "1", f"{path} holds {batch} sequences; this program continues one")
    if dtype != origin.dtype:
        raise OtherOrigin(f"{path} was made by a model in {dtype}, this one is in {origin.dtype}")
    if metadata["model_hash"] != origin.model_hash:
        raise OtherOrigin(f"{path} is a state of another model")
    if metadata["tokenizer_hash"] != origin.tokenizer_hash:
        raise OtherOrigin(f"{path} is a state of a text with another tokenizer")


def _dtype(model: LanguageModel) -> str:
    return str(model.embedding.weight.dtype).removeprefix("torch.")


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU; complex numbers as pairs of real ones [...,2], which every reader of the format knows."""
    tensor = tensor.detach().cpu().contiguous()
    return torch.view_as_real(tensor).contiguous() if tensor.is_complex() else tensor


def _like(stored: Tensor, like: Tensor) -> Tensor:
    tensor = torch.view_as_complex(stored) if like.is_complex() else stored
    return tensor.to(like.device)


def _in_eight_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            found[name], found[name + SCALE] = rounded(tensor.reshape(-1))
        else:
            found[name] = tensor
    return found


def _shapes_in_eight_bits(plain: dict[str, list[int]], like: ModelState) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, tensor in like.tensors().items():
        blocks = -(-math.prod(plain[name]) // BLOCK)
        whole = not (tensor.is_floating_point() or tensor.is_complex())
        found |= {name: plain[name]} if whole else {name: [blocks, BLOCK], name + SCALE: [blocks]}
    return found


def _from_eight_bits(tensors: dict[str, Tensor], plain: dict[str, list[int]], like: ModelState) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in like.tensors().items():
        numbers, scales = tensors[name], tensors.get(name + SCALE)
        if scales is None:
            found[name] = numbers
            continue
        fits = numbers.dtype == torch.int8 and scales.dtype == torch.float32 and bool(scales.isfinite().all())
        refuse(not fits, f"the saved state is damaged: {name} is not in eight bits")
        dtype = tensor.real.dtype if tensor.is_complex() else tensor.dtype
        found[name] = restored(numbers, scales, math.prod(plain[name]), dtype).view(plain[name])
    return found


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    stated = {key: value for key, value in sorted(metadata.items()) if key != "checksum"}
    digest = hashlib.sha256(repr(stated).encode())
    add_tensors(digest, tensors)
    return digest.hexdigest()


def _pending(path: Path, metadata: dict[str, str]) -> bytes:
    try:
        pending = bytes.fromhex(metadata.get("pending", ""))
    except ValueError:
        pending = bytes(4)
    refuse(len(pending) > 3, f"{path} is damaged: pending is {metadata.get('pending', '')[:30]!r}")
    return pending


def _whole(path: Path, metadata: dict[str, str], key: str) -> int:
    if not metadata[key].isdecimal() or len(metadata[key]) > 18:
        raise UserError(f"{path} is damaged: {key} is {metadata[key][:30]!r}")
    return int(metadata[key])
