"""Models on disk: folders with settings and weights, found also inside run folders. No pickle anywhere.

model folder       config.json        {"format": 1, "kind": "language", "model": {fields of its settings}}
                   kinds: language (ModelConfig), sequence (SequenceConfig), vision (VisionConfig), deit
                   (DeiTConfig)
                   model.safetensors  every parameter under its name in the module; or, of a model that several
                   processes wrote, several files of whole parameters and model.safetensors.index.json, which places
                   them as transformers' index does
                   tokenizer/         what Tokenizer.save wrote, where a tokenizer belongs to it
checkpoint folder  the same without tokenizer/, with the trainer's files and manifest.json: bytes and sha256 of each
run folder         checkpoints/step-N/ and one tokenizer/ for all of them
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hgrn2 import files
from hgrn2.errors import UserError
from hgrn2.files import (
    atomic_folder,
    atomic_path,
    check_utf8,
    listed_name,
    read_json,
    sha256,
    write_json,
)
from hgrn2.models.config import DeiTConfig, ModelConfig, SequenceConfig, StackConfig, VisionConfig
from hgrn2.models.deit import DeiT
from hgrn2.models.language import LanguageModel
from hgrn2.models.plain import check_plain, check_readable
from hgrn2.models.sequence import SequenceClassifier
from hgrn2.models.tensor_files import open_weights, places
from hgrn2.models.unmade import Unmade
from hgrn2.models.vision import VisionClassifier
from hgrn2.settings import changed, from_dict, refuse, to_dict

FORMAT = 1
Classifier = SequenceClassifier | VisionClassifier | DeiT
Model = LanguageModel | Classifier
Settings = StackConfig | DeiTConfig
_KINDS: dict[str, tuple[type[Settings], Any]] = {
    "language": (ModelConfig, LanguageModel),
    "sequence": (SequenceConfig, SequenceClassifier),
    "vision": (VisionConfig, VisionClassifier),
    "deit": (DeiTConfig, DeiT),
}
CLASSIFIERS = ("sequence", "vision", "deit")
CONFIG, WEIGHTS, MANIFEST, CHECKPOINTS, TOKENIZER = (
    "config.json", "model.safetensors", "manifest.json", "checkpoints", "tokenizer",
)  # fmt: skip
CONFIG_LIMIT = 1 << 20  # bytes; a real one has about a thousand
_STEP = re.compile(r"step-(\d+)")
_FLOATS = ("F64", "F32", "F16", "BF16")

Warn = Callable[[str], None]


class Saveable(Protocol):
    """What is asked of a tokenizer here; models know nothing else of data."""

    def save(self, folder: Path) -> None: ...


class Found(NamedTuple):
    """Where a model lies: the folder with its weights, and the run folder and step that they belong to, if any."""

    folder: Path
    run: Path | None = None
    step: int | None = None

    @property
    def tokenizer(self) -> Path | None:
        """The folder of its tokenizer, or None where there is none."""
        places = [self.folder / TOKENIZER] + ([self.run / TOKENIZER] if self.run else [])
        return next((place for place in places if place.is_dir()), None)


def save_model(folder: str | Path, model: Model, tokenizer: Saveable | None = None) -> None:
    """Write a model folder: whole or absent where it is new. A folder that holds a model already is refused.

    In a folder that is there each file is whole or absent; `config.json` comes last, so one that has it is complete.
    """
    folder = Path(folder)
    if folder.exists():
        write_model(folder, model, tokenizer)
    else:
        with reported(folder), atomic_folder(folder) as temporary:
            write_model(temporary, model, tokenizer)


def write_model(folder: Path, model: Model, tokenizer: Saveable | None = None) -> None:
    """Write the files of `save_model` into a folder that is there."""
    check_utf8(folder)
    state = model.state_dict()
    refuse("quantized" in state, "a quantised model is not saved; save the model it was made from")
    check_unchanged(model, f"{folder} cannot be written")
    for name in (CONFIG, WEIGHTS):
        refuse((folder / name).exists(), f"{folder / name} already exists; it is not overwritten")
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with reported(folder):
        with atomic_path(folder / WEIGHTS) as place:
            save_file(tensors, place)
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER)
        write_json(folder / CONFIG, {"format": FORMAT, "kind": kind_of(model), "model": to_dict(model.config)})


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    warn: Warn | None = None,
) -> LanguageModel:
    """The model of a model folder, a checkpoint folder, or a run folder (its newest checkpoint), in evaluation mode.

    Args:
        path: the folder. What it holds is compared with the checkpoint's manifest.json where there is one.
        device: where the parameters go.
        dtype: of the parameters; None keeps that of the file.
        warn: told when a run's newest checkpoint is damaged, and an older whole one is taken; without it that is an
            error which names the older one.

    Raises:
        UserError: no such folder, no model in it, damaged or unfitting files, settings of another version.
    """
    return read_model(find_model(path, warn).folder, device, dtype)


def load_classifier(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    warn: Warn | None = None,
) -> Classifier:
    """As `load_model`, for classifiers of sequences and of images."""
    model = _read(find_model(path, warn).folder, CLASSIFIERS, device, dtype)
    assert not isinstance(model, LanguageModel)
    return model


def build_classifier(config: Settings) -> Classifier:
    """A new classifier of these settings."""
    return next(made for settings, made in _KINDS.values() if type(config) is settings)(config)


def check_unchanged(model: Model, what: str) -> None:
    """Refuse a model whose weights are not those that its settings make: with adapters, quantised or offloaded."""
    kind = kind_of(model)
    if kind in _KINDS:  # what is trained around a frozen model, as its state is, has tensors of its own
        check_plain(model.state_dict(), _without_weights(kind, model.config, Path(CONFIG)).state_dict(), what)


def kind_of(model: Model) -> str:
    """The name of a model's kind in its config.json: the model's own word for it, if it has one."""
    return getattr(model, "kind", None) or next(kind for kind, (_, made) in _KINDS.items() if isinstance(model, made))


def find_model(path: str | Path, warn: Warn | None = None) -> Found:
    """Where the model of a path lies, its checksums compared; see `load_model`."""
    path = Path(path)
    refuse(not path.exists(), f"{path} does not exist")
    refuse(not path.is_dir(), f"{path} is not a folder; give a model folder or a run folder")
    if (path / CHECKPOINTS).is_dir():
        return _newest_whole(path, warn)
    nothing = not any((path / name).exists() for name in (CONFIG, WEIGHTS, MANIFEST))
    refuse(nothing, f"{path} holds no model ({WEIGHTS}) and no {CHECKPOINTS}/ of a run")
    check_files(path)
    match = _STEP.fullmatch(path.name)
    if match and path.absolute().parent.name == CHECKPOINTS:
        return Found(path, path.absolute().parent.parent, int(match[1]))
    return Found(path)


def checkpoints(run: Path) -> list[Found]:
    """The checkpoint folders of a run by rising step, whole or not; unfinished ones have other names."""
    matches = [(folder, _STEP.fullmatch(folder.name)) for folder in (run / CHECKPOINTS).iterdir() if folder.is_dir()]
    found = [Found(folder, run, int(match[1])) for folder, match in matches if match]
    return sorted(found, key=lambda checkpoint: checkpoint.step or 0)


def _newest_whole(run: Path, warn: Warn | None) -> Found:
    fault = None
    for found in reversed(checkpoints(run)):
        try:
            check_files(found.folder)
        except UserError as error:
            fault = fault or error
            continue
        if fault and warn is None:
            raise UserError(f"{fault}; the newest whole checkpoint is {found.folder}: give that folder")
        if fault and warn:
            warn(f"{fault}; taking {found.folder.name}, the newest whole checkpoint")
        return found
    raise UserError(f"{fault}; {run} has no whole checkpoint" if fault else f"{run} has no checkpoint yet")


def check_files(folder: Path) -> None:
    """Refuse a folder that lacks a file, or whose files are not those of its manifest.

    Sizes are compared for every file, checksums for those that make the model; the trainer checks its own.
    """
    manifest = read_files(folder) if os.path.lexists(folder / MANIFEST) else None
    making = (CONFIG, *weight_files(folder))
    for name in making:
        refuse(not (folder / name).is_file(), f"{folder} is incomplete: {name} is missing")
        unlisted = manifest is not None and name not in manifest
        refuse(unlisted, f"{folder / MANIFEST} is damaged: it does not list {name}")
    for name, wanted in (manifest or {}).items():
        path = folder / name
        refuse(not path.is_file(), f"{folder} is damaged: {name} is missing")
        size = path.stat().st_size
        refuse(size != wanted["bytes"], f"{path} is damaged: {size:,} bytes instead of {wanted['bytes']:,}")
        changed = name in making and sha256(path) != wanted["sha256"]
        refuse(changed, f"{path} is damaged: its checksum differs")


def weight_files(folder: Path, name: str = WEIGHTS) -> tuple[str, ...]:
    """Names of the files that hold a folder's weights (or other tensors that are called so), an index first."""
    index = f"{name}.index.json"
    if (folder / name).exists() or not (folder / index).exists():
        return (name,)
    return (index, *sorted(set(places(folder / index).values())))


def read_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a checkpoint: of every file its `bytes` and `sha256`; anything else is a `UserError`."""
    path = folder / MANIFEST
    values = read_json(path, dict, limit=CONFIG_LIMIT)
    for name, wanted in values.items():
        listed_name(name, str(path))
        fits = isinstance(wanted, dict) and type(wanted.get("bytes")) is int and isinstance(wanted.get("sha256"), str)
        refuse(not fits, f"{path} is damaged at {name!r}: it must state bytes and sha256")
    return values


def read_config(folder: Path, kinds: tuple[str, ...] = ("language",)) -> tuple[str, Settings]:
    """The kind and the settings in a model folder's config.json; a kind that is not among `kinds` is refused."""
    path = folder / CONFIG
    values = read_json(path, dict, limit=CONFIG_LIMIT)
    refuse("model" not in values, f"{path} holds no model settings")
    version = values.get("format")
    refuse(version != FORMAT, f"{path} has format {version}; this program reads format {FORMAT}")
    found = values.get("kind")
    wanted = " or ".join(map(repr, kinds))
    refuse(found not in kinds, f"{path} is of a model of kind {found!r}; this program reads {wanted} here")
    try:
        return str(found), from_dict(_KINDS[str(found)][0], values["model"], "model")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_model(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LanguageModel:
    """Build the model of one folder and give it its weights, without a manifest check; see `load_model`."""
    model = _read(folder, ("language",), device, dtype)
    assert isinstance(model, LanguageModel)
    return model


def _read(folder: Path, kinds: tuple[str, ...], device: torch.device | str, dtype: torch.dtype | None) -> Model:
    place = usable_device(device)
    kind, config = read_config(folder, kinds)
    path = folder / weight_files(folder)[0]
    with open_weights(folder) as file:
        names = set(file.files)
        # Before anything is built: settings that ask for a billion layers must not cost the time to make them.
        refuse(
            config.layers > len(names), f"{path} does not fit {CONFIG}: {len(names)} tensors, {config.layers} layers"
        )
        model = _without_weights(kind, config, folder / CONFIG)
        own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        stored = {name: file.files[name].get_slice(name) for name in sorted(names)}
        _refuse_names(path, "lacks", sorted(set(own) - names))
        _refuse_names(path, "has unknown tensors", sorted(names - set(own)))
        for name, tensor in stored.items():
            shape, kind = tensor.get_shape(), tensor.get_dtype()
            refuse(shape != own[name], f"{path}: {name} is {shape}, but {CONFIG} makes it {own[name]}")
            refuse(kind not in _FLOATS, f"{path}: {name} has dtype {kind}, which is no floating-point type")
        if dtype is None:
            _refuse_mixed(path, stored)
        weights = {name: file.get(name).to(device=place, dtype=dtype) for name in stored}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _refuse_mixed(path: Path, stored: Mapping[str, Any]) -> None:
    """The model's matrices would not multiply."""
    kinds: dict[str, str] = {}
    for name, tensor in stored.items():
        kinds.setdefault(tensor.get_dtype(), name)
    several = " and ".join(f"{name} in {kind}" for kind, name in kinds.items())
    refuse(len(kinds) > 1, f"{path} holds {several}: write all weights in one dtype, or load them with dtype=")


def _without_weights(kind: str, config: Settings, path: Path) -> Model:
    try:
        with Unmade():
            return _KINDS[kind][1](config)
    except RuntimeError as error:  # sizes beyond what torch can count
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def _refuse_names(path: Path, fault: str, names: list[str]) -> None:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    refuse(bool(names), f"{path} does not fit {CONFIG}: it {fault} {', '.join(names[:3])}{more}")


def usable_device(device: torch.device | str) -> torch.device:
    """A device by name; `auto` is cuda where there is one, else cpu. One that is not here is a `UserError`."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        if place.type == "meta":
            raise UserError("device 'meta' cannot be used: it holds no numbers")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"device {str(device)!r} cannot be used: {reason}") from None
    return place


def model_hash(model: Model) -> str:
    """Hex digest of settings and weights: equal for models that compute the same, wherever and however saved."""
    digest = hashlib.sha256(json.dumps(changed(model.config), sort_keys=True).encode())
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()


def add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Feed names, dtypes, shapes and bytes into a hash, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        check_readable(name, tensor, "the weights cannot be told apart")
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Around writing: a full disk, a read-only folder and the like become a `UserError` that names the file."""
    try:
        with files.reported(path):
            yield
    except SafetensorError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
