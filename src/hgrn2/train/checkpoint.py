"""Checkpoints of a run: folders that are whole or absent, with checksums; no pickle anywhere.

checkpoints/step-00001000/   config.json model.safetensors (what models/saved.py reads)
                             optimizer.safetensors (states by parameter name, carried states, random generators)
                             trainer.json (step, seconds, guard)   manifest.json (bytes and sha256 of each file)

Several processes write several files of whole tensors with an index instead (`shared_checkpoint.py`); both are read by
any number of processes, which take their pieces of the tensors.
"""

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from hgrn2.errors import UserError
from hgrn2.files import atomic_folder, clean, read_json, remove, sha256, write_json
from hgrn2.models.saved import (
    Found,
    Model,
    check_files,
    checkpoints,
    read_files,
    reported,
    weight_files,
    write_model,
)
from hgrn2.models.tensor_files import open_weights
from hgrn2.parallel.pieces import local
from hgrn2.train.average import WeightAverage
from hgrn2.train.best import BestWeights
from hgrn2.train.carried import PREFIX as CARRIED

FORMAT = 1
SECOND_SETS = (WeightAverage.prefix, BestWeights.prefix)
RANDOM = "random/"


class Checkpoint(NamedTuple):
    """What a folder holds, read and checked; nothing is changed by that."""

    folder: Path
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    """States by parameter name, and averaged weights where there are some."""
    random: dict[str, torch.Tensor]
    """States of random generators by device."""
    states: dict[str, torch.Tensor]
    """Of all rows of a batch, where states are carried from step to step."""
    trainer: dict[str, Any]
    """step, elapsed_s, guard and what else the trainer gave."""


def save(run: Path, step: int, model: Model, optimizer: dict[str, torch.Tensor], trainer: dict[str, Any]) -> Path:
    """Write a checkpoint under a temporary name and rename it; a whole one of the same step is left as it is."""
    target = run / "checkpoints" / f"step-{step:08d}"
    if os.path.lexists(target):
        try:
            verify(target)
            return target
        except UserError:  # damaged: what is saved now takes its place
            pass
    with reported(target), atomic_folder(target, replace=True) as folder:
        write_model(folder, model)
        tensors = {name: value.detach().cpu().contiguous() for name, value in optimizer.items()}
        tensors |= {RANDOM + name: value for name, value in random_states().items()}
        save_file(tensors, folder / "optimizer.safetensors")
        write_json(folder / "trainer.json", {"format": FORMAT, "step": step, **trainer})
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
        write_json(folder / "manifest.json", files)
    return target


def read(folder: Path, model: Model, needs: Collection[str] = (), ranks: Any = None) -> Checkpoint:
    """Read a checkpoint of `model` and compare every file with its checksum; the trainer `needs` some values more.

    Args:
        ranks: the processes among which the model is spread (`hgrn2.parallel.ranks.Ranks`), one of whom has compared
            checksums; each reads its pieces.

    Raises:
        UserError: a damaged or missing file, values that no trainer wrote, weights of another model.
    """
    if ranks is None:
        verify(folder)
    own, pieces = model.state_dict(), ranks or Whole()
    with open_weights(folder) as file:
        if set(file.files) != set(own) or any(file.shape(n) != pieces.shape(n, own[n]) for n in own):
            raise UserError(f"{folder} is a checkpoint of another model")
        weights = {name: pieces.own(name, file.get(name), own[name]) for name in own}
    with open_weights(folder, stem="optimizer") as file:
        names = [name for name in file.files if not name.startswith((RANDOM, CARRIED))]
        states = {name: file.get(name) for name in file.files if name.startswith(CARRIED)}
        random = {n.removeprefix(RANDOM): file.get(n) for n in file.files if n.startswith(RANDOM)}
        _check_random(folder, random)
        _check_optimizer(folder, {name: file.shape(name) for name in names}, model, pieces)
        tensors = {name: pieces.own(owner(name), file.get(name), own[owner(name)]) for name in names}
    return Checkpoint(folder, weights, tensors, random, states, _trainer(folder, needs))


def _check_random(folder: Path, random: dict[str, torch.Tensor]) -> None:
    for name, state in random.items():
        if state.dtype != torch.uint8 or (name == "cpu" and state.shape != torch.get_rng_state().shape):
            raise UserError(f"{folder} is damaged: the state of the random generator of {name} is none")
    if "cpu" not in random:
        raise UserError(f"{folder} is damaged: it lacks the state of the random generator")


class Whole:
    """A process that has all of every tensor; `hgrn2.parallel.ranks.Ranks` has pieces."""

    def shape(self, name: str, like: torch.Tensor) -> list[int]:
        """Of the whole tensor `name`, of which the model has `like`."""
        return list(like.shape)

    def own(self, name: str, whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What the model has of a whole tensor."""
        return whole


def owner(name: str) -> str:
    """The parameter to which a state of the optimiser belongs, or another value of it."""
    prefix, _, rest = name.partition("/")
    return rest if prefix in SECOND_SETS else name.rpartition("/")[0]


@torch.no_grad()
def apply(found: Checkpoint, model: Model) -> None:
    """Put a checkpoint's weights and random states back."""
    own = model.state_dict()
    if any(hasattr(value, "to_local") for value in own.values()):
        for name, value in own.items():
            local(value).copy_(found.weights[name])
    else:
        model.load_state_dict(found.weights)
    torch.set_rng_state(found.random["cpu"])
    if "cuda" in found.random and torch.cuda.is_available():
        torch.cuda.set_rng_state(found.random["cuda"])


def verify(folder: Path) -> None:
    """Compare every file with the manifest; the first that differs is a `UserError` that names it."""
    check_files(folder)
    manifest = read_files(folder)
    for name in (*weight_files(folder, "optimizer.safetensors"), "trainer.json"):
        wanted = manifest.get(name)
        if wanted is None or not (folder / name).is_file() or sha256(folder / name) != wanted["sha256"]:
            raise UserError(f"{folder / name} is damaged: its checksum differs")
    _trainer(folder)


def _trainer(folder: Path, needs: Collection[str] = ()) -> dict[str, Any]:
    """The trainer's values: whole numbers, seconds and losses where they should be."""
    path = folder / "trainer.json"
    values = read_json(path, dict)
    guard, seconds, best = values.get("guard"), values.get("elapsed_s"), values.get("best", {})
    fits = (
        values.get("format") == FORMAT
        and type(values.get("step")) is int
        and f"step-{values['step']:08d}" == folder.name
        and isinstance(seconds, int | float)
        and 0 <= seconds < math.inf
        and isinstance(guard, dict)
        and type(guard.get("high")) is int
        and isinstance(guard.get("accepted"), list)
        and all(isinstance(loss, int | float) for loss in guard["accepted"])
        and all(name in values for name in needs)
        and isinstance(best, dict)
        and isinstance(best.get("loss") or 0.0, int | float)
        and ("best" not in values or ("loss" in best and all(type(best.get(key)) is int for key in ("step", "waited"))))
    )
    if not fits:
        raise UserError(f"{path} is damaged: it is not what a trainer writes")
    return values


def _check_optimizer(folder: Path, shapes: dict[str, list[int]], model: Model, pieces: Any) -> None:
    """States belong to parameters and have their shapes; of a second set of weights all are there, or none is."""
    own, parameters = model.state_dict(), dict(model.named_parameters())
    sets: dict[str, set[str]] = {prefix: set() for prefix in SECOND_SETS}
    wrong = []
    for name, shape in shapes.items():
        prefix, _, rest = name.partition("/")
        if prefix in sets:
            sets[prefix].add(rest)
            fits = rest in own and shape == pieces.shape(rest, own[rest])
        else:
            held = parameters.get(owner(name))
            fits = held is not None and shape in (pieces.shape(owner(name), held), [])
        wrong += [] if fits else [name]
    wrong += [f"{prefix}/{min(set(own) - held)}" for prefix, held in sets.items() if held and set(own) - held]
    if wrong:
        raise UserError(f"{folder} is damaged: its optimiser's state does not fit the model at {wrong[0]}")


def newest_whole(run: Path, model: Model, needs: Collection[str] = ()) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and the model's, and a line about each newer one that is not."""
    problems = []
    for found in reversed(checkpoints(run)) if (run / "checkpoints").is_dir() else ():
        try:
            return read(found.folder, model, needs), problems
        except UserError as error:
            problems.append(str(error))
    return None, problems


def newest_verified(run: Path) -> tuple[Found | None, list[str]]:
    """The newest checkpoint whose files are whole, whatever the model, and a line about each newer one that is not."""
    problems = []
    for found in reversed(checkpoints(run)) if (run / "checkpoints").is_dir() else ():
        try:
            verify(found.folder)
            return found, problems
        except UserError as error:
            problems.append(str(error))
    return None, problems


def retain(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and what interrupted writes left behind."""
    for found in checkpoints(run)[:-keep]:
        remove(found.folder)
    clean(run / "checkpoints")


def random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
