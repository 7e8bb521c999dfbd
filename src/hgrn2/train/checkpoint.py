"""Checkpoints of a run: folders that are whole or absent, with checksums; no pickle anywhere.

checkpoints/step-00001000/   config.json model.safetensors (what models/saved.py reads)
                             optimizer.safetensors (states by parameter name, random generators)
                             trainer.json (step, seconds, guard)   manifest.json (bytes and sha256 of each file)
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hgrn2.errors import UserError
from hgrn2.files import atomic_folder, read_json, sha256, write_json
from hgrn2.models.saved import Model, check_files, checkpoints, reported, save_model

_RANDOM = "random/"


def save(run: Path, step: int, model: Model, optimizer: dict[str, torch.Tensor], trainer: dict[str, Any]) -> Path:
    """Write a checkpoint under a temporary name and rename it; one of the same step is left as it is."""
    target = run / "checkpoints" / f"step-{step:08d}"
    if target.exists():
        return target
    with reported(target), atomic_folder(target) as folder:
        save_model(folder, model)
        tensors = {name: value.detach().cpu().contiguous() for name, value in optimizer.items()}
        tensors |= {_RANDOM + name: value for name, value in _random_states().items()}
        save_file(tensors, folder / "optimizer.safetensors")
        write_json(folder / "trainer.json", {"format": 1, "step": step, **trainer})
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
        write_json(folder / "manifest.json", files)
        _sync(folder)
    return target


def load(folder: Path, model: Model) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Put a checkpoint's weights and random states back; returns the optimiser's tensors and the trainer's values.

    Every file is compared with its checksum first, so a damaged checkpoint changes nothing.
    """
    verify(folder)
    try:
        weights, tensors = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged: {error}") from None
    own = model.state_dict()
    if set(weights) != set(own) or any(weights[n].shape != own[n].shape for n in own):
        raise UserError(f"{folder} is a checkpoint of another model")
    model.load_state_dict(weights)
    _restore_random({n.removeprefix(_RANDOM): tensors.pop(n) for n in list(tensors) if n.startswith(_RANDOM)})
    return tensors, read_json(folder / "trainer.json")


def verify(folder: Path) -> None:
    """Compare every file with the manifest; the first that differs is a `UserError` that names it."""
    check_files(folder)
    for name in ("optimizer.safetensors", "trainer.json"):
        wanted = read_json(folder / "manifest.json").get(name)
        if wanted is None or sha256(folder / name) != wanted["sha256"]:
            raise UserError(f"{folder / name} is damaged: its checksum differs")


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes its checksums, and a line about each newer one that does not."""
    problems = []
    for found in reversed(checkpoints(run)) if (run / "checkpoints").is_dir() else ():
        try:
            verify(found.folder)
            return found.folder, problems
        except UserError as error:
            problems.append(str(error))
    return None, problems


def retain(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and what interrupted writes left behind."""
    for found in checkpoints(run)[:-keep]:
        doomed = found.folder.with_name(f".{found.folder.name}.old")
        os.replace(found.folder, doomed)  # first out of sight: a half-removed checkpoint must not look like one
        shutil.rmtree(doomed, ignore_errors=True)
    for left in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
